/* A template's program for tests: serves forks, in the ways that its argument names. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xmmintrin.h>

static volatile int caught;
static void catch(int signal) { caught = signal; }

static int value = 1;
static volatile int turns;

static void show_file(const char *path) {
    char line[4096];
    FILE *file = fopen(path, "r");
    if (!file) { printf("%s: %s\n", path, strerror(errno)); return; }
    while (fgets(line, sizeof line, file)) fputs(line, stdout);
    fclose(file);
}

static void show_namespaces(void) {
    static const char *names[] = {"pid", "mnt", "net", "ipc", "uts", "cgroup"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        char path[64], link[64] = "";
        sprintf(path, "/proc/self/ns/%s", names[i]);
        if (readlink(path, link, sizeof link - 1) < 0) strcpy(link, strerror(errno));
        printf("ns-%s: %s\n", names[i], link);
    }
}

static void show_descriptors(void) {
    DIR *directory = opendir("/proc/self/fd");
    printf("descriptors:");
    for (int fd = 0; fd < 256; fd++)
        if (fd != dirfd(directory) && fcntl(fd, 1) != -1) printf(" %d%s", fd, fcntl(fd, 1) ? "c" : "");
    closedir(directory);
    printf("\n");
}

static int report(void) {
    struct rlimit limit;
    struct utsname name;
    char cwd[256] = "";
    show_file("/proc/self/status");
    show_namespaces();
    show_descriptors();
    getrlimit(RLIMIT_CORE, &limit);
    uname(&name);
    if (!getcwd(cwd, sizeof cwd)) strcpy(cwd, strerror(errno));
    printf("core: %ld %ld\nhost: %s\ncwd: %s\n", (long)limit.rlim_cur, (long)limit.rlim_max, name.nodename, cwd);
    printf("pid: %d\nparent: %d\nsession: %d\ngroup: %d\n", getpid(), getppid(), getsid(0), getpgrp());
    printf("mxcsr: %x\nvalue: %d\ncpu: %d\n", _mm_getcsr(), value, sched_getcpu() >= 0);
    /* Registering again what is registered is refused with EBUSY. */
    char *area = (char *)__builtin_thread_pointer() + __rseq_offset;
    int again = syscall(SYS_rseq, area, 32, 0, RSEQ_SIG);
    printf("sequences: %s\n", !__rseq_size ? "none" : again == -1 && errno == EBUSY ? "registered" : "lost");
    caught = 0;
    raise(SIGUSR1);
    printf("caught: %d\n", caught == SIGUSR1);
    pid_t child = fork();
    if (!child) _exit(3);
    int status = 0;
    waitpid(child, &status, 0);
    printf("child: %d\n", WEXITSTATUS(status));
    fflush(stdout);
    return 7;
}

static void say(const char *text) { send(3, text, strlen(text), MSG_NOSIGNAL); }

static void *turn(void *unused) {
    for (;;) turns++;
    return unused;
}

/* Changes the code that the kernel maps into every process: no call is made there any more. */
static void spoil(void) {
    unsigned char *base = (unsigned char *)getauxval(AT_SYSINFO_EHDR);
    int memory = open("/proc/self/mem", O_RDWR);
    for (int i = 0x40; i < 8191; i++)
        if (base[i] == 0x0f && base[i + 1] == 0x05 && pwrite(memory, "\x90\x90", 2, (off_t)(base + i)) != 2)
            perror("write the vDSO");
    close(memory);
}

static void load(const char *mode) {
    pthread_t thread;
    if (!strcmp(mode, "threads"))
        for (int i = 0; i < 3; i++) pthread_create(&thread, NULL, turn, NULL);
    if (!strcmp(mode, "spoil")) spoil();
    if (!strcmp(mode, "exec")) execl("/bin/sleep", "sleep", "1000", (char *)NULL);
    if (!strcmp(mode, "shell") && system("echo a | cat | (read x; test $x = a)")) say("the shell has failed");
    if (!strcmp(mode, "fork")) {
        pid_t child = fork();
        if (!child) _exit(5);
        int status = 0;
        waitpid(child, &status, 0);
        value = WEXITSTATUS(status);
    }
}

int main(int count, char **arguments) {
    const char *mode = count > 1 ? arguments[1] : "";
    struct sigaction action = {.sa_handler = catch};
    sigset_t set;
    sigaction(SIGUSR1, &action, NULL);
    signal(SIGHUP, SIG_IGN);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    _mm_setcsr(_mm_getcsr() | 0x6000);
    load(mode);
    int own = open("/proc/self/status", 0);
    value = value == 1 ? 42 : value;
    say("ready 1 c");
    char text[4096];
    ssize_t length;
    while ((length = recv(3, text, sizeof text - 1, 0)) > 0) {
        text[length] = 0;
        if (!strcmp(mode, "quiet")) continue;
        if (!strcmp(mode, "die")) _exit(9);
        pid_t child = fork();
        if (!child && !strcmp(mode, "bench")) { char byte = 'x'; return write(1, &byte, 1) != 1; }
        if (!child && !strcmp(mode, "stay")) { for (;;) pause(); }
        if (!child) return report();
        char answer[64];
        if (child < 0) sprintf(answer, "failed %s %d", text + 5, errno);
        else sprintf(answer, "forked %s %d", text + 5, child);
        say(answer);
    }
    return own < 0;
}
