/* Templates whose program is no good. The first argument says how. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* How long the code is that the kernel maps into processes (vDSO). */
#define CODE 0x2000

static const char *mode;

static int is(const char *other) { return strcmp(mode, other) == 0; }

static void say(const char *text) { send(3, text, strlen(text), MSG_NOSIGNAL); }

static void thread(void *(*run)(void *)) {
    pthread_t made;
    pthread_create(&made, NULL, run, NULL);
    pthread_detach(made);
}

/* Says the same for ever. */
static void *flood(void *text) {
    for (;;)
        say("forked 0 1");
    return text;
}

static void ignore(int number) { (void)number; }

static void *raise_signals(void *nothing) {
    for (;;)
        raise(SIGUSR1);
    return nothing;
}

/* Makes processes for ever, without being asked. */
static void bomb(void) {
    for (int turn = 0; turn < 4; turn++)
        if (syscall(SYS_fork) == 0)
            for (;;)
                if (syscall(SYS_fork) == 0 && syscall(SYS_fork) == 0)
                    _exit(0);
}

/* Puts another instruction wherever the kernel's code in this process makes a system call. */
static void overwrite(const char *code) {
    unsigned char *start = (unsigned char *)getauxval(AT_SYSINFO_EHDR);
    if (mprotect(start, CODE, PROT_READ | PROT_WRITE | PROT_EXEC) != 0)
        return;
    for (int at = 0; at < CODE; at++)
        if (start[at] == 0x0f && start[at + 1] == 0x05)
            memcpy(start + at, code, 2);
}

/* The same code, but in memory that copies share, where a thread changes it all the time. */
static volatile unsigned char *shared;
static void *flicker(void *nothing) {
    int at = 0;
    while (shared[at] != 0x0f || shared[at + 1] != 0x05)
        at++;
    for (unsigned turn = 0;; turn++) {
        shared[at + 1] = 0x03;
        shared[at] = 0xcd;
        shared[at] = 0x0f;
        shared[at + 1] = 0x05;
        for (volatile unsigned wait = 0; wait < turn % 50000; wait++)
            ;
    }
    return nothing;
}
static void share_code(void) {
    unsigned char *start = (unsigned char *)getauxval(AT_SYSINFO_EHDR), copy[CODE];
    memcpy(copy, start, sizeof copy);
    int file = memfd_create("x", 0);
    if (ftruncate(file, CODE) != 0 || pwrite(file, copy, sizeof copy, 0) != sizeof copy)
        return;
    shared = mmap(start, CODE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED | MAP_FIXED, file, 0);
    thread(flicker);
}

/* Writes over the memory by which the parked processes are told who they are to be: the group 0, more rights. */
struct area {
    unsigned long start, end;
} areas[64];
static int area_count;
static void *scribble(void *nothing) {
    int groups = is("groups");
    for (;;)
        for (int index = 0; index < area_count; index++) {
            volatile unsigned *words = (unsigned *)areas[index].start;
            if (groups && words[0] == 7 && words[1] == 5)
                words[0] = words[1] = 0;
            if (!groups && words[0] == _LINUX_CAPABILITY_VERSION_3)
                words[2] = words[3] = 0xff;
        }
    return nothing;
}
static void find_scratch(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    while (fgets(line, sizeof line, maps) != NULL) {
        struct area area;
        char rights[8];
        if (sscanf(line, "%lx-%lx %7s", &area.start, &area.end, rights) == 3 && strcmp(rights, "rw-p") == 0 &&
            area.end - area.start == 64 << 10 && area_count < 64)
            areas[area_count++] = area;
    }
    fclose(maps);
}

static void trace_myself(void) {
    int child = syscall(SYS_fork);
    if (child == 0)
        for (;;)
            pause();
    if (ptrace(PTRACE_TRACEME, 0, 0, 0) == 0 || ptrace(PTRACE_ATTACH, child, 0, 0) == 0 ||
        ptrace(PTRACE_ATTACH, getppid(), 0, 0) == 0 || ptrace(PTRACE_ATTACH, 1, 0, 0) == 0)
        say("it can trace");
    kill(child, SIGKILL);
}

static void before(void) {
    signal(SIGUSR1, ignore);
    if (is("signals"))
        for (int turn = 0; turn < 32; turn++)
            thread(raise_signals);
    if (is("bomb"))
        bomb();
    if (is("traces"))
        trace_myself();
    if (is("code-early"))
        overwrite("\xcd\x03");
    if (is("hides"))
        prctl(PR_SET_DUMPABLE, 0);
    if (is("forks"))
        for (int turn = 0; turn < 10; turn++)
            if (syscall(SYS_fork) == 0)
                for (;;)
                    pause();
    if (is("garbage"))
        say("dance");
    if (is("kills")) {
        kill(-1, SIGKILL);
        for (int pid = 1; pid < 70000; pid++)
            if (pid != getpid()) {
                kill(pid, SIGKILL);
                kill(pid, SIGSTOP);
            }
    }
}

static void after(void) {
    static char huge[100000];
    if (is("flood"))
        for (int turn = 0; turn < 4; turn++)
            thread(flood);
    if (is("huge")) {
        memset(huge, 'x', sizeof huge);
        send(3, huge, 60000, 0);
    }
    if (is("empty"))
        send(3, "", 0, 0);
    if (is("again"))
        say("ready 1 c");
    if (is("early"))
        say("forked 1 7");
    if (is("groups") || is("rights")) {
        find_scratch();
        thread(scribble);
    }
    if (is("shared-code"))
        share_code();
}

/* What it does when it is asked to fork; whether it is to go on as if it were a good one. */
static int asked(const char *request) {
    char answer[64];
    const char *number = request + 5;
    if (is("exits"))
        exit(3);
    if (is("stops"))
        kill(getpid(), SIGSTOP);
    if (is("executes"))
        execl("/bin/sleep", "sleep", "1000", NULL);
    if (is("twice")) {
        snprintf(answer, sizeof answer, "forked %.20s 1", number);
        say(answer);
    }
    if (is("code"))
        overwrite("\xcd\x03");
    if (is("loop"))
        overwrite("\xeb\xfe");
    if (is("compatible"))
        overwrite("\xcd\x80");
    if (is("nothing"))
        overwrite("\x90\x90");
    if (is("unmaps"))
        munmap((void *)getauxval(AT_SYSINFO_EHDR), CODE);
    if (is("untraced") && syscall(SYS_clone, CLONE_UNTRACED | SIGCHLD, 0, 0, 0, 0) == 0)
        _exit(0);
    if (is("namespaces") && syscall(SYS_clone, CLONE_NEWUSER | CLONE_PARENT | SIGCHLD, 0, 0, 0, 0) == 0)
        _exit(0);
    if (is("forged")) {
        snprintf(answer, sizeof answer, "forked %.20s 1", number);
        say(answer);
        return 0;
    }
    return 1;
}

int main(int argc, char **argv) {
    char request[4097], answer[128];
    mode = argc > 1 ? argv[1] : "";
    before();
    say("ready 1 c");
    after();
    for (;;) {
        ssize_t length = recv(3, request, sizeof request - 1, 0);
        if (length == 0)
            return 0;
        if (length < 0)
            return 1;
        request[length] = 0;
        if (!asked(request))
            continue;
        long child = syscall(SYS_fork);
        if (child == 0) {
            puts("it runs");
            fflush(stdout);
            sleep(1000);
            _exit(0);
        }
        snprintf(answer, sizeof answer, child < 0 ? "failed %.20s EAGAIN" : "forked %.20s %ld", request + 5, child);
        say(answer);
    }
}
