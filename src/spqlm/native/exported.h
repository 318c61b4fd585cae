// What functions that Python calls have in common.
#pragma once

#include <cstdint>

#define EXPORTED extern "C" __attribute__((visibility("default")))

// How a call ended; only after DONE has anything been written. Read by spqlm/native/interface.py.
enum Status : int32_t {
  REFUSED = -1,  // there is a code of a format, a type or a schedule that these kernels do not know
  DECLINED = 0,  // there is no such kernel for this processor or these shapes
  DONE = 1,
};
