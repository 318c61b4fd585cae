// What Python compares with its own before it calls anything else.
#include <cstring>

#include "attention.h"
#include "columns.h"
#include "decoder.h"
#include "exported.h"

#ifndef SPQ_FINGERPRINT
#error "setup.py compiles this: it defines SPQ_FINGERPRINT, see spqlm/native/fingerprint.py"
#endif

// Of the sources that this library was compiled from.
EXPORTED const char* spq_fingerprint() { return SPQ_FINGERPRINT; }

// Bytes of a structure that Python mirrors; 0 where there is none of that name.
EXPORTED int64_t spq_size_of(const char* name) {
  const struct {
    const char* name;
    int64_t size;
  } structures[] = {
      {"Matrix", sizeof(Matrix)},   {"Linear", sizeof(Linear)}, {"Layer", sizeof(Layer)},
      {"Decoder", sizeof(Decoder)}, {"States", sizeof(States)}, {"Attention", sizeof(Attention)},
      {"AttentionGradient", sizeof(AttentionGradient)}, {"Columns", sizeof(Columns)},
  };
  for (const auto& structure : structures)
    if (!strcmp(structure.name, name)) return structure.size;
  return 0;
}

// Steps are told about sequences in tensors of three int64.
static_assert(sizeof(Sequence) == 3 * sizeof(int64_t));
