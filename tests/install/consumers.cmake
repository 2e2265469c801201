# Run with cmake -P; see CMakeLists.txt. Stops with an error at the first step that fails.
set(here ${CMAKE_CURRENT_LIST_DIR}/consumer)
set(work ${BUILD}/install-check)
set(prefix ${work}/prefix)
file(REMOVE_RECURSE ${work})

function(run)
    execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY OUTPUT_VARIABLE output)
    set(output ${output} PARENT_SCOPE)
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${prefix})
foreach(program tandem-router tandem-prefill tandem-decode)
    run(${prefix}/bin/${program} --help)
endforeach()

# By pkg-config, from a place that it was not installed to.
file(RENAME ${prefix} ${work}/moved)
set(ENV{PKG_CONFIG_PATH} ${work}/moved/${LIBDIR}/pkgconfig)
set(ENV{LD_LIBRARY_PATH} ${work}/moved/${LIBDIR})
run(pkg-config --cflags --libs tandem)
separate_arguments(flags UNIX_COMMAND "${output}")
run(${CC} -std=c17 ${here}/main.c ${flags} -o ${work}/by-pkg-config)
run(${work}/by-pkg-config)
set(examples ${CMAKE_CURRENT_LIST_DIR}/../../examples)
run(${CC} -std=gnu17 -Wall -Wextra -Werror ${examples}/stream.c ${flags} -o ${work}/stream)
run(${CMAKE_CURRENT_LIST_DIR}/stream.sh ${work}/moved ${work}/stream)

# By find_package.
run(${CMAKE_COMMAND} -S ${here} -B ${work}/build -D CMAKE_PREFIX_PATH=${work}/moved
    -D CMAKE_C_COMPILER=${CC})
run(${CMAKE_COMMAND} --build ${work}/build)
run(${work}/build/consumer)
