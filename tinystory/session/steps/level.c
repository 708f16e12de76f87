/* Name the best level of `step.c` for the processor that runs this: "avx512", "avx2" or "plain". `setup.py` defines
   X86_LEVELS if the library has more than the plain level. */
const char *step_level(void) {
#ifdef X86_LEVELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return "avx512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
    return "plain";
}
