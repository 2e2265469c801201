# Links that are plugins (xfer/plugin.h): libtandem_ipc.so, which needs the CUDA runtime alone, and
# libtandem_nccl.so; and their C files for tests/fake/nccl, which builds the emulated ones.
set(TANDEM_NCCL AUTO CACHE STRING "the NCCL plugin: ON, OFF, AUTO (where NCCL is)")
set_property(CACHE TANDEM_NCCL PROPERTY STRINGS AUTO ON OFF)

get_target_property(link_sources tandem_device_link SOURCES)
list(TRANSFORM link_sources PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
set(plugin_sources ${link_sources} ${CMAKE_SOURCE_DIR}/common/plugin_side.c ${CMAKE_SOURCE_DIR}/common/failpoint.c)
set(nccl_sources)
foreach(name nccl nccl_plugin reaper)
    list(APPEND nccl_sources ${CMAKE_CURRENT_SOURCE_DIR}/${name}.c)
endforeach()
set(ipc_sources)
foreach(name ipc ipc_plugin reaper)
    list(APPEND ipc_sources ${CMAKE_CURRENT_SOURCE_DIR}/${name}.c)
endforeach()
set_property(GLOBAL PROPERTY TANDEM_NCCL_PLUGIN_SOURCES ${nccl_sources} ${plugin_sources})
set_property(GLOBAL PROPERTY TANDEM_IPC_PLUGIN_SOURCES ${ipc_sources} ${plugin_sources})

# --- why there may be none ---

set(why_no_ipc)
set(why_no_nccl)
set(cuda_hints $ENV{CUDA_HOME} $ENV{CUDA_PATH} /usr/local/cuda)
if(TANDEM_SANITIZE OR TANDEM_FUZZ)
    set(why_no_ipc "this is a build for sanitizers or fuzzing")
else()
    find_path(CUDART_INCLUDE cuda_runtime_api.h HINTS ${cuda_hints} PATH_SUFFIXES include)
    find_library(CUDART cudart HINTS ${cuda_hints} PATH_SUFFIXES lib64 lib)
    if(NOT CUDART_INCLUDE OR NOT CUDART)
        set(why_no_ipc "no cuda_runtime_api.h and libcudart in CUDA_HOME or /usr/local/cuda")
    endif()
endif()
if(TANDEM_NCCL STREQUAL "OFF")
    set(why_no_nccl "TANDEM_NCCL is OFF")
elseif(why_no_ipc)
    set(why_no_nccl "${why_no_ipc}")
else()
    find_path(NCCL_INCLUDE nccl.h HINTS $ENV{NCCL_HOME} ${cuda_hints} PATH_SUFFIXES include)
    find_library(NCCL nccl HINTS $ENV{NCCL_HOME} ${cuda_hints} PATH_SUFFIXES lib64 lib)
    if(NOT NCCL_INCLUDE OR NOT NCCL)
        set(why_no_nccl "no nccl.h and libnccl in NCCL_HOME, CUDA_HOME or /usr/local/cuda")
    endif()
endif()
if(TANDEM_NCCL STREQUAL "ON" AND why_no_nccl)
    message(FATAL_ERROR "The NCCL plugin cannot be built: ${why_no_nccl}")
endif()

# --- the libraries: link_plugin(NAME SOURCES file... INCLUDES folder... LIBRARIES file...) ---

# One symbol goes out (plugin.map).
function(link_plugin name)
    cmake_parse_arguments(A "" "" "SOURCES;INCLUDES;LIBRARIES" ${ARGN})
    set(rpath "$ORIGIN")
    foreach(library ${A_LIBRARIES})
        get_filename_component(folder ${library} DIRECTORY)
        list(APPEND rpath ${folder})
    endforeach()
    add_library(tandem_${name} MODULE ${A_SOURCES} ${plugin_sources})
    target_include_directories(tandem_${name} SYSTEM PRIVATE ${A_INCLUDES})
    target_link_libraries(tandem_${name} PRIVATE ${A_LIBRARIES} Threads::Threads)
    target_link_options(tandem_${name} PRIVATE -Wl,--no-undefined
                        -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/plugin.map)
    set_target_properties(tandem_${name} PROPERTIES
        C_VISIBILITY_PRESET hidden
        LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/plugin.map
        LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib/tandem
        INSTALL_RPATH "${rpath}")
    install(TARGETS tandem_${name} LIBRARY DESTINATION lib/tandem)
endfunction()

if(why_no_ipc)
    message(STATUS "CUDA IPC plugin: skipped (${why_no_ipc})")
else()
    message(STATUS "CUDA IPC plugin: ${CUDART}")
    link_plugin(ipc SOURCES ${ipc_sources} INCLUDES ${CUDART_INCLUDE} LIBRARIES ${CUDART})
endif()
if(why_no_nccl)
    message(STATUS "NCCL plugin: skipped (${why_no_nccl})")
else()
    message(STATUS "NCCL plugin: ${NCCL}")
    link_plugin(nccl SOURCES ${nccl_sources} INCLUDES ${NCCL_INCLUDE} ${CUDART_INCLUDE}
                LIBRARIES ${NCCL} ${CUDART})
endif()
