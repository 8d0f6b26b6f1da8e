/* A template that shows what a clone of the C library sees, and answers calls in every way there is. */

#define _XOPEN_SOURCE 700

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "regen_zygote.h"

extern char **environ;

static pid_t loaded_by;

static void say_bye(void) { printf("bye\n"); }

static int look(int argc, char **argv) {
    for (int index = 1; index <= argc; index++)
        printf("%s\n", argv[index] == NULL ? "(end)" : argv[index]);
    for (char **variable = environ; *variable != NULL; variable++)
        printf("%s\n", *variable);
    setenv("FOO", "changed", 1);
    printf("%s %d\n", getenv("FOO"), loaded_by != getpid());
    return 7;
}

static int answer(const struct regen_call *call) {
    const char *name = call->handler;
    if (strcmp(name, "look:echo") == 0)
        return printf("called"), regen_call_result(call->event, call->event_length) != 0;
    if (strcmp(name, "look:error") == 0)
        return regen_call_error("Own \"type\"", "\x01 \\ \xc3\xa9 \xf0\x9f\x98\x80 \xc3( \xed\xa0\x80 \xff \xe2\x82"), 9;
    if (strcmp(name, "look:twice") == 0) {
        int first = regen_call_result("1", 1), second = regen_call_error("Late", "late");
        return !(first == 0 && second == -1 && errno == EALREADY);
    }
    return strcmp(name, "look:nothing") == 0 ? 0 : 3;
}

static int entry(int argc, char **argv, const struct regen_call *call) {
    if (call != NULL)
        return answer(call);
    if (regen_call_result("1", 1) != -1 || errno != EINVAL)
        return 1;
    return look(argc, argv);
}

int main(void) {
    loaded_by = getpid();
    atexit(say_bye);
    signal(SIGPIPE, SIG_IGN);
    printf("loaded ");
    return regen_zygote_serve(entry, "look 1.0");
}
