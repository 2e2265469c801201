# Links that are plugins (xfer/plugin.h), and their C files for tests/fake/nccl, which builds the emulated
# ones.
set(TANDEM_NCCL AUTO CACHE STRING "the NCCL plugin: ON, OFF, AUTO (where NCCL is)")
set_property(CACHE TANDEM_NCCL PROPERTY STRINGS AUTO ON OFF)

get_target_property(link_sources tandem_device_link SOURCES)
list(TRANSFORM link_sources PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
set(plugin_sources ${link_sources} ${CMAKE_SOURCE_DIR}/common/plugin_side.c)
set(nccl_sources)
foreach(name nccl nccl_plugin reaper)
    list(APPEND nccl_sources ${CMAKE_CURRENT_SOURCE_DIR}/${name}.c)
endforeach()
set_property(GLOBAL PROPERTY TANDEM_NCCL_PLUGIN_SOURCES ${nccl_sources} ${plugin_sources})

# --- libtandem_nccl.so ---

set(why)
if(TANDEM_NCCL STREQUAL "OFF")
    set(why "TANDEM_NCCL is OFF")
elseif(TANDEM_SANITIZE OR TANDEM_FUZZ)
    set(why "this is a build for sanitizers or fuzzing")
else()
    set(cuda_hints $ENV{CUDA_HOME} $ENV{CUDA_PATH} /usr/local/cuda)
    find_path(CUDART_INCLUDE cuda_runtime_api.h HINTS ${cuda_hints} PATH_SUFFIXES include)
    find_library(CUDART cudart HINTS ${cuda_hints} PATH_SUFFIXES lib64 lib)
    find_path(NCCL_INCLUDE nccl.h HINTS $ENV{NCCL_HOME} ${cuda_hints} PATH_SUFFIXES include)
    find_library(NCCL nccl HINTS $ENV{NCCL_HOME} ${cuda_hints} PATH_SUFFIXES lib64 lib)
    if(NOT CUDART_INCLUDE OR NOT CUDART)
        set(why "no cuda_runtime_api.h and libcudart in CUDA_HOME or /usr/local/cuda")
    elseif(NOT NCCL_INCLUDE OR NOT NCCL)
        set(why "no nccl.h and libnccl in NCCL_HOME, CUDA_HOME or /usr/local/cuda")
    endif()
endif()
if(why)
    if(TANDEM_NCCL STREQUAL "ON")
        message(FATAL_ERROR "The NCCL plugin cannot be built: ${why}")
    endif()
    message(STATUS "NCCL plugin: skipped (${why})")
    return()
endif()
message(STATUS "NCCL plugin: ${NCCL}")

# One symbol goes out (plugin.map).
add_library(tandem_nccl MODULE ${nccl_sources} ${plugin_sources})
target_include_directories(tandem_nccl SYSTEM PRIVATE ${NCCL_INCLUDE} ${CUDART_INCLUDE})
target_link_libraries(tandem_nccl PRIVATE ${NCCL} ${CUDART} Threads::Threads)
target_link_options(tandem_nccl PRIVATE -Wl,--no-undefined
                    -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/plugin.map)
get_filename_component(nccl_libraries ${NCCL} DIRECTORY)
get_filename_component(cudart_libraries ${CUDART} DIRECTORY)
set_target_properties(tandem_nccl PROPERTIES
    C_VISIBILITY_PRESET hidden
    LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/plugin.map
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib/tandem
    INSTALL_RPATH "$ORIGIN;${nccl_libraries};${cudart_libraries}")
install(TARGETS tandem_nccl LIBRARY DESTINATION lib/tandem)
