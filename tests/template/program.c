/* A template that does little, and what can be asked of a clone of it. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "regen_zygote.h"

static int entry(int argc, char **argv, const struct regen_call *call) {
    if (call != NULL)
        return regen_call_result(call->event, call->event_length) == 0 ? 0 : 1;
    const char *verb = argc > 1 ? argv[1] : "";
    const char *word = argc > 2 ? argv[2] : "";
    if (strcmp(verb, "say") == 0) {
        puts(word);
    } else if (strcmp(verb, "exit") == 0) {
        return atoi(word);
    } else if (strcmp(verb, "die") == 0) {
        raise(SIGKILL);
    } else if (strcmp(verb, "sleep") == 0) {
        for (;;)
            pause();
    } else if (strcmp(verb, "write") == 0) {
        int file = open(word, O_CREAT | O_EXCL | O_WRONLY, 0600);
        puts(file < 0 ? "no" : "yes");
    } else if (strcmp(verb, "where") == 0) {
        char directory[4096];
        puts(getcwd(directory, sizeof directory));
    } else if (strcmp(verb, "env") == 0) {
        const char *value = getenv(word);
        puts(value == NULL ? "-" : value);
    } else if (strcmp(verb, "files") == 0) {
        for (int number = 0; number < 1024; number++)
            if (fcntl(number, F_GETFD) != -1)
                printf("%d ", number);
    } else if (strcmp(verb, "eat") == 0) {
        size_t size = (size_t)atol(word);
        volatile char *memory = malloc(size);
        for (size_t index = 0; index < size; index += 4096)
            memory[index] = 1;
        puts("eaten");
    }
    return 0;
}

int main(int argc, char **argv) {
    /* What goes wrong while it loads. */
    if (argc > 1 && strcmp(argv[1], "fail") == 0) {
        fputs("first line\ncannot load: nothing there\n", stderr);
        return 3;
    }
    if (argc > 1 && strcmp(argv[1], "hang") == 0)
        for (;;)
            pause();
    if (argc > 1 && strcmp(argv[1], "version") == 0) {
        if (write(3, "ready 2 c", 9) < 0)
            return 1;
        for (;;)
            pause();
    }
    return regen_zygote_serve(entry, "c");
}
