# The project's flags, its packages, and the three functions that every folder uses.

set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release)
endif()

option(TANDEM_WERROR "treat warnings as errors" OFF)
option(TANDEM_TESTS "build the tests" ON)
option(TANDEM_FUZZ "build libFuzzer targets (needs clang)" OFF)
option(TANDEM_FAILPOINTS "compile in what ./dev chaos needs (common/failpoint.h)" OFF)
set(TANDEM_SANITIZE "" CACHE STRING "sanitizers, e.g. address,undefined or thread")

# The GPU's kernels are C++ files; their tests compile them for the host (tests/fake/cuda).
if(TANDEM_TESTS)
    enable_language(CXX)
endif()

# -ffp-contract=off: an FMA happens only where it is written (docs/numerics.md, G3).
add_compile_options(-Wall -Wextra -Wvla -Wno-missing-field-initializers -ffp-contract=off
                    -fno-math-errno -fno-omit-frame-pointer)
add_compile_options("$<$<COMPILE_LANGUAGE:C>:-Wshadow;-Wstrict-prototypes;-Wmissing-prototypes>")
add_compile_definitions(_GNU_SOURCE)
if(TANDEM_WERROR)
    add_compile_options(-Werror)
endif()
if(TANDEM_SANITIZE)
    add_compile_options(-fsanitize=${TANDEM_SANITIZE} -fno-sanitize-recover=all)
    add_link_options(-fsanitize=${TANDEM_SANITIZE})
endif()
if(TANDEM_FAILPOINTS)
    add_compile_definitions(TANDEM_FAILPOINTS)
endif()
if(TANDEM_FUZZ)
    add_compile_options(-fsanitize=fuzzer-no-link) # coverage of the code under the targets
endif()
include_directories(${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})

find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(ZMQ REQUIRED IMPORTED_TARGET libzmq)
# zmq.h needs none of the private -isystem flags in libzmq.pc, which pkg_check_modules reports one way
# at the first configuration and another way from its cache, so that everything was built twice.
set_target_properties(PkgConfig::ZMQ PROPERTIES INTERFACE_COMPILE_OPTIONS ""
                      INTERFACE_INCLUDE_DIRECTORIES "${ZMQ_INCLUDEDIR}")
pkg_check_modules(PROTOBUF_C REQUIRED IMPORTED_TARGET libprotobuf-c)
pkg_check_modules(EVENT REQUIRED IMPORTED_TARGET libevent_core)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson)
pkg_check_modules(YAML REQUIRED IMPORTED_TARGET yaml-0.1)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(HWLOC REQUIRED IMPORTED_TARGET hwloc)
# Debian 12 has its file as msgpack.pc, later ones as msgpack-c.pc.
pkg_search_module(MSGPACK REQUIRED IMPORTED_TARGET msgpack-c msgpack)
pkg_check_modules(LMDB REQUIRED IMPORTED_TARGET lmdb)
pkg_check_modules(SODIUM REQUIRED IMPORTED_TARGET libsodium)
pkg_check_modules(HIREDIS REQUIRED IMPORTED_TARGET hiredis)
# Not its -D_FILE_OFFSET_BITS, which would be for all that link it.
set_target_properties(PkgConfig::HIREDIS PROPERTIES INTERFACE_COMPILE_OPTIONS "")
if(TANDEM_TESTS)
    pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)
endif()

# tandem_library(kv SOURCES pool.c … DEPS tandem_common …): the static library tandem_kv.
function(tandem_library name)
    cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
    add_library(tandem_${name} STATIC ${A_SOURCES})
    target_link_libraries(tandem_${name} PUBLIC ${A_DEPS})
endfunction()

# tandem_program(tandem-router SOURCES main.c DEPS …): a program in build/bin, installed.
function(tandem_program name)
    cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
    add_executable(${name} ${A_SOURCES})
    target_link_libraries(${name} PRIVATE ${A_DEPS})
    install(TARGETS ${name} RUNTIME DESTINATION bin)
endfunction()

# tandem_test(kv_pool DEPS tandem_kv): tests/unit/kv_pool_test.c with cmocka, run by ctest under
# the label unit. FOLDER contract takes tests/contract/… and that label instead. A test that
# loads data finds the source tree in TANDEM_SOURCE_DIR.
function(tandem_test name)
    if(NOT TANDEM_TESTS)
        return()
    endif()
    cmake_parse_arguments(A "" "FOLDER;TIMEOUT" "DEPS;SOURCES;ARGS" ${ARGN})
    if(NOT A_FOLDER)
        set(A_FOLDER unit)
    endif()
    if(NOT A_TIMEOUT)
        set(A_TIMEOUT 120)
    endif()
    if(TANDEM_SANITIZE) # as PATIENCE in tests/unit/testing.h
        math(EXPR A_TIMEOUT "4 * ${A_TIMEOUT}")
    endif()
    add_executable(${name}_test ${CMAKE_SOURCE_DIR}/tests/${A_FOLDER}/${name}_test.c ${A_SOURCES})
    target_link_libraries(${name}_test PRIVATE ${A_DEPS} PkgConfig::CMOCKA)
    target_compile_definitions(${name}_test PRIVATE TANDEM_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    set_target_properties(${name}_test PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
    add_test(NAME ${A_FOLDER}/${name} COMMAND ${name}_test ${A_ARGS})
    set_tests_properties(${A_FOLDER}/${name} PROPERTIES LABELS ${A_FOLDER} TIMEOUT ${A_TIMEOUT}
                         SKIP_RETURN_CODE 77)
    if(TANDEM_SANITIZE) # libpciaccess, which hwloc's PCI plugin brings, leaks and is unloaded unnamed
        set_tests_properties(${A_FOLDER}/${name} PROPERTIES ENVIRONMENT HWLOC_PLUGINS_PATH=/nowhere)
    endif()
endfunction()

# tandem_emulated_kernels(kernels_emulated rows.cu …): the static library of this name with .cu files
# as host code, on the emulator of tests/fake/cuda; whoever links it also links the runtime.
function(tandem_emulated_kernels name)
    set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX)
    add_library(${name} STATIC ${ARGN})
    target_compile_definitions(${name} PRIVATE TANDEM_EMULATED)
    target_compile_features(${name} PRIVATE cxx_std_17)
    # -O2 in release builds; the pragmas that are not known here are nvcc's "unroll".
    target_compile_options(${name} PRIVATE -fno-exceptions -fno-rtti -Wno-unknown-pragmas
                                           $<$<CONFIG:Release>:-O2>)
    # The emulator guards what kernels touch; sanitizers would add minutes of compiling to that.
    if(TANDEM_SANITIZE)
        target_compile_options(${name} PRIVATE -fno-sanitize=all)
    else() # each access asks whether it is aligned; the emulator has what is called if not
        target_compile_options(${name} PRIVATE -fsanitize=alignment
                                               -fno-sanitize-recover=alignment)
    endif()
    target_link_libraries(${name} PUBLIC tandem_cuda_emulator)
endfunction()

# What these kernels touch in device memory is looked at (tests/fake/cuda/races.c), where no sanitizer is.
function(tandem_watch_races name)
    if(NOT TANDEM_SANITIZE)
        target_compile_options(${name} PRIVATE -fsanitize=thread
                                               --param=tsan-instrument-func-entry-exit=0)
        target_compile_definitions(${name} PUBLIC TANDEM_RACES)
        target_link_libraries(${name} PUBLIC tandem_cuda_races)
    endif()
endfunction()

# tandem_bench(kernels DEPS tandem_kernels): tests/bench/kernels_bench.c as build/bench/kernels, run
# by ./dev bench. It prints one JSON object {figure: value} as the last line of stdout.
function(tandem_bench name)
    if(NOT TANDEM_TESTS)
        return()
    endif()
    cmake_parse_arguments(A "" "" "DEPS;SOURCES" ${ARGN})
    add_executable(${name}_bench ${CMAKE_SOURCE_DIR}/tests/bench/${name}_bench.c ${A_SOURCES})
    target_link_libraries(${name}_bench PRIVATE ${A_DEPS})
    target_compile_definitions(${name}_bench PRIVATE TANDEM_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    set_target_properties(${name}_bench PROPERTIES OUTPUT_NAME ${name}
                          RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)
endfunction()
