// Ends what a target_*.h began; GCC needs nothing, its target lasts to the end of the file.
#if defined(__clang__)
#pragma clang attribute pop
#endif
