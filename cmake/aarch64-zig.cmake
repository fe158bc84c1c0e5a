# AArch64 Linux from any machine, with the compiler of PyPI's ziglang: static programs over musl, which need no loader
# and no library of the device, and so run on Android, on Linux and under qemu-aarch64.
#
#   cmake -S . -B build/aarch64 -G Ninja -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-zig.cmake \
#       -DCONVSCAN_PYTHON=OFF -DCONVSCAN_OPENMP=OFF
#
# The baseline of the architecture, never -mcpu=cortex-…: the models of recent cores emit SVE instructions, which many of
# their phones lack.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)

set(CONVSCAN_ZIG "" CACHE FILEPATH "The zig program; by default the one of Python's package ziglang")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES CONVSCAN_ZIG)
if(NOT CONVSCAN_ZIG)
  if(NOT Python_EXECUTABLE)
    set(Python_EXECUTABLE python3)
  endif()
  execute_process(
      COMMAND ${Python_EXECUTABLE} -c "import os, ziglang; print(os.path.join(*ziglang.__path__, 'zig'))"
      OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE CONVSCAN_ZIG RESULT_VARIABLE failed ERROR_QUIET)
  if(failed)
    message(FATAL_ERROR "${Python_EXECUTABLE} has no package ziglang: pip install ziglang, or give -DCONVSCAN_ZIG=<zig>")
  endif()
endif()

set(CMAKE_C_COMPILER ${CONVSCAN_ZIG} cc)
set(CMAKE_CXX_COMPILER ${CONVSCAN_ZIG} c++)
set(CMAKE_AR ${CONVSCAN_ZIG})
foreach(language C CXX)
  set(CMAKE_${language}_FLAGS_INIT "-target aarch64-linux-musl -mcpu=baseline")
  set(CMAKE_${language}_ARCHIVE_CREATE "<CMAKE_AR> ar qc <TARGET> <OBJECTS>")
  set(CMAKE_${language}_ARCHIVE_APPEND "<CMAKE_AR> ar q <TARGET> <OBJECTS>")
  set(CMAKE_${language}_ARCHIVE_FINISH "<CMAKE_AR> ranlib <TARGET>")
endforeach()
set(CMAKE_EXE_LINKER_FLAGS_INIT "-static")
# Checks of the compiler do not link: zig builds its C and C++ libraries for every new set of flags, a minute each time.
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)

set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)

find_program(CONVSCAN_QEMU NAMES qemu-aarch64 qemu-aarch64-static)  # tests run under emulation where there is one
if(CONVSCAN_QEMU)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${CONVSCAN_QEMU})
endif()
