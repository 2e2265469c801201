# What is installed beside the programs: libtandem with its header, pkg-config and CMake package
# files, the demo model. Included last, when all targets exist.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

if(TARGET tandem)
    # The soname is the ABI's version: it rises when a program built before would break.
    set_target_properties(tandem PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION 0)
    target_include_directories(tandem INTERFACE
        $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/client>
        $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
    install(TARGETS tandem EXPORT tandem LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
    install(FILES client/tandem.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
    install(EXPORT tandem NAMESPACE tandem:: FILE tandem-targets.cmake
            DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/tandem)
    configure_package_config_file(cmake/tandem-config.cmake.in ${CMAKE_BINARY_DIR}/tandem-config.cmake
                                  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/tandem)
    write_basic_package_version_file(${CMAKE_BINARY_DIR}/tandem-config-version.cmake
                                     COMPATIBILITY SameMajorVersion)
    install(FILES ${CMAKE_BINARY_DIR}/tandem-config.cmake
                  ${CMAKE_BINARY_DIR}/tandem-config-version.cmake
            DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/tandem)
    # Relative to the file itself, so that the installed tree can be moved.
    file(RELATIVE_PATH TANDEM_PC_PREFIX /at/${CMAKE_INSTALL_LIBDIR}/pkgconfig /at)
    configure_file(cmake/tandem.pc.in ${CMAKE_BINARY_DIR}/tandem.pc @ONLY)
    install(FILES ${CMAKE_BINARY_DIR}/tandem.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()

if(EXISTS ${PROJECT_SOURCE_DIR}/examples/demo_model/model)
    install(DIRECTORY examples/demo_model/model/
            DESTINATION ${CMAKE_INSTALL_DATADIR}/tandem/demo_model)
endif()
# Units, charts and examples; demo.sh is of the source tree.
install(DIRECTORY deploy DESTINATION ${CMAKE_INSTALL_DATADIR}/tandem USE_SOURCE_PERMISSIONS
        PATTERN demo.sh EXCLUDE)
install(FILES LICENSE README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
