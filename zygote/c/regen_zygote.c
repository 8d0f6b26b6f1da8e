/* The zygote protocol, version 1, for programs in C: see regen_zygote.h and regen's docs/zygote.md. */

#define _XOPEN_SOURCE 700

#include "regen_zygote.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

extern char **environ;

enum { JOB = 3, RESULT = 4, MESSAGE = 4096 };

/* Where regen looks for programs if there is no PATH. */
static const char default_path[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/* What a clone is to do. Everything points into one buffer that lives as long as the process. */
struct job {
    int argc;
    char **argv;
    char **environment;
    /* Only if call.handler is there. */
    struct regen_call call;
};

/* Whether this process has a call to answer, and has done so. */
static enum { NO_CALL, OPEN, ANSWERED } answer = NO_CALL;

static void complain(const char *format, ...) {
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length < 0)
        return;
    size_t size = (size_t)length < sizeof line - 2 ? (size_t)length : sizeof line - 2;
    for (size_t index = 0; index < size; index++)
        if (line[index] == '\n')
            line[index] = ' ';
    line[size] = '\n';
    /* Nobody can be told if this fails. */
    ssize_t ignored = write(STDERR_FILENO, "regen_zygote: ", 14);
    ignored = write(STDERR_FILENO, line, size + 1);
    (void)ignored;
}

/* ---- The job ---- */

/* All of the job, with a NUL behind it; NULL with errno. */
static char *read_job(size_t *size) {
    size_t room = 4096;
    char *data = NULL;
    *size = 0;
    for (;;) {
        if (data == NULL || *size == room - 1) {
            room = data == NULL ? room : 2 * room;
            char *larger = realloc(data, room);
            if (larger == NULL) {
                free(data);
                return NULL;
            }
            data = larger;
        }
        ssize_t count = read(JOB, data + *size, room - 1 - *size);
        if (count == 0) {
            data[*size] = '\0';
            close(JOB);
            return data;
        }
        if (count > 0)
            *size += (size_t)count;
        else if (errno != EINTR) {
            free(data);
            return NULL;
        }
    }
}

struct cursor {
    char *next;
    char *end;
};

/* The next string; NULL if there is none that ends. */
static char *take(struct cursor *cursor) {
    size_t left = (size_t)(cursor->end - cursor->next);
    char *end = left == 0 ? NULL : memchr(cursor->next, '\0', left);
    if (end == NULL)
        return NULL;
    char *string = cursor->next;
    cursor->next = end + 1;
    return string;
}

/* A number and as many strings, with NULL behind them; NULL if the job is damaged or there is no memory. */
static char **take_list(struct cursor *cursor, int *count) {
    const char *text = take(cursor);
    if (text == NULL || *text == '\0' || strspn(text, "0123456789") != strlen(text) || strlen(text) > 9)
        return NULL;
    long number = strtol(text, NULL, 10);
    /* Each has at least its NUL. */
    if (number > cursor->end - cursor->next)
        return NULL;
    char **list = calloc((size_t)number + 1, sizeof *list);
    if (list == NULL)
        return NULL;
    for (long index = 0; index < number; index++)
        if ((list[index] = take(cursor)) == NULL)
            return NULL;
    *count = (int)number;
    return list;
}

/* 0, or -1 if it is no job. What was allocated before is given up with the process. */
static int parse_job(char *data, size_t size, struct job *job) {
    struct cursor cursor = {data, data + size};
    const char *magic = take(&cursor);
    const char *version = take(&cursor);
    if (magic == NULL || version == NULL || strcmp(magic, "regen-job") != 0 || strcmp(version, REGEN_ZYGOTE_VERSION) != 0)
        return -1;
    int variables, fields;
    char **call;
    if ((job->argv = take_list(&cursor, &job->argc)) == NULL || (job->environment = take_list(&cursor, &variables)) == NULL ||
        (call = take_list(&cursor, &fields)) == NULL || cursor.next != cursor.end)
        return -1;
    if (fields == 2) {
        job->call.handler = call[0];
        job->call.event = call[1];
        job->call.event_length = strlen(call[1]);
        return 0;
    }
    return fields == 0 && job->argc > 0 ? 0 : -1;
}

/* ---- Other programs ---- */

/* The path number index at which execvp(3) would look for a program; 0 if there is none any more, or it is too long. */
static int candidate(const char *name, int index, char *path, size_t size) {
    if (strchr(name, '/') != NULL)
        return index == 0 && (size_t)snprintf(path, size, "%s", name) < size;
    const char *part = getenv("PATH");
    if (part == NULL)
        part = default_path;
    for (; index > 0; index--) {
        part = strchr(part, ':');
        if (part == NULL)
            return 0;
        part++;
    }
    int length = (int)strcspn(part, ":");
    return (size_t)snprintf(path, size, "%.*s%s%s", length, part, length > 0 ? "/" : "", name) < size;
}

/* Whether executing name would start the executable own. */
static int is_own(const char *name, const char *own) {
    char path[PATH_MAX], real[PATH_MAX];
    for (int index = 0; candidate(name, index, path, sizeof path); index++) {
        struct stat status;
        if (stat(path, &status) == 0 && S_ISREG(status.st_mode) && access(path, X_OK) == 0)
            return *own != '\0' && realpath(path, real) != NULL && strcmp(real, own) == 0;
    }
    return 0;
}

static void become(char **argv) {
    char path[PATH_MAX];
    int refused = 0;
    fflush(NULL);
    /* What the template ignores and blocks is no affair of another program. */
    for (int number = 1; number < 65; number++) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN) {
            action.sa_handler = SIG_DFL;
            sigaction(number, &action, NULL);
        }
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int index = 0; candidate(argv[0], index, path, sizeof path); index++) {
        execve(path, argv, environ);
        if (errno != ENOENT && errno != ENOTDIR && refused == 0)
            refused = errno;
    }
    complain("exec '%s': %s", argv[0], refused == 0 ? "not found" : strerror(refused));
    _exit(refused == 0 ? 127 : 126);
}

/* ---- Answers ---- */

static int write_all(int descriptor, const char *data, size_t size) {
    while (size > 0) {
        ssize_t count = write(descriptor, data, size);
        if (count < 0 && errno != EINTR)
            return -1;
        if (count > 0) {
            data += count;
            size -= (size_t)count;
        }
    }
    return 0;
}

static int begin_answer(void) {
    if (answer != OPEN) {
        errno = answer == ANSWERED ? EALREADY : EINVAL;
        return -1;
    }
    answer = ANSWERED;
    /* What was printed is there before the answer is. */
    fflush(NULL);
    return 0;
}

static int end_answer(int failed) {
    int cause = errno;
    if (close(RESULT) != 0 && !failed)
        return -1;
    errno = cause;
    return failed ? -1 : 0;
}

int regen_call_result(const char *json, size_t length) {
    if (begin_answer() != 0)
        return -1;
    return end_answer(write_all(RESULT, "{\"result\": ", 11) != 0 || write_all(RESULT, json, length) != 0 ||
                      write_all(RESULT, "}", 1) != 0);
}

/* The length of the character that begins at text, 0 if it is no UTF-8. */
static size_t character(const unsigned char *text) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (*text < 0x80)
        return 1;
    size_t length = *text >= 0xf0 ? 4 : *text >= 0xe0 ? 3 : 2;
    if (*text < 0xc2 || *text > 0xf4)
        return 0;
    uint32_t point = *text & (0xffu >> (length + 1));
    for (size_t index = 1; index < length; index++) {
        if ((text[index] & 0xc0) != 0x80)
            return 0;
        point = point << 6 | (text[index] & 0x3f);
    }
    return point < least[length] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000) ? 0 : length;
}

/* Writes a string of JSON to end, which has room for six bytes for each of its own; gives the new end. */
static char *quote(char *end, const char *string) {
    const unsigned char *text = (const unsigned char *)string;
    *end++ = '"';
    while (*text != '\0') {
        size_t length = character(text);
        if (length == 0)
            end += sprintf(end, "\\ufffd");
        else if (*text < 0x20 || *text == '"' || *text == '\\')
            end += sprintf(end, "\\u%04x", *text);
        else {
            memcpy(end, text, length);
            end += length;
        }
        text += length == 0 ? 1 : length;
    }
    *end++ = '"';
    return end;
}

int regen_call_error(const char *type, const char *message) {
    char *text = malloc(6 * (strlen(type) + strlen(message)) + 100);
    if (text == NULL || begin_answer() != 0) {
        free(text);
        return -1;
    }
    char *end = text + sprintf(text, "{\"error\": {\"type\": ");
    end = quote(end, type);
    end += sprintf(end, ", \"message\": ");
    end = quote(end, message);
    end += sprintf(end, ", \"traceback\": \"\"}}");
    int failed = write_all(RESULT, text, (size_t)(end - text)) != 0;
    free(text);
    return end_answer(failed);
}

/* ---- A clone ---- */

static void run(regen_entry *entry, const char *own) {
    struct job job = {0, NULL, NULL, {NULL, NULL, 0}};
    size_t size;
    char *data = read_job(&size);
    if (data == NULL || parse_job(data, size, &job) != 0) {
        complain("read the job: %s", data == NULL ? strerror(errno) : "it is damaged");
        exit(1);
    }
    environ = job.environment;
    if (job.call.handler == NULL) {
        if (!is_own(job.argv[0], own))
            become(job.argv);
        exit(entry(job.argc, job.argv, NULL));
    }
    answer = OPEN;
    fcntl(RESULT, F_SETFD, FD_CLOEXEC);
    int status = entry(job.argc, job.argv, &job.call);
    if (answer == OPEN) {
        regen_call_error("NoAnswer", "the program has not answered the call");
        status = status == 0 ? 1 : status;
    }
    exit(status);
}

/* ---- The template ---- */

/* Tells once of threads that no clone will have. */
static void look_for_threads(void) {
    static int told = 0;
    DIR *directory = told ? NULL : opendir("/proc/self/task");
    if (directory == NULL)
        return;
    int count = -1;
    for (const struct dirent *entry; (entry = readdir(directory)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(directory);
    if (count > 0) {
        told = 1;
        complain("warning: threads besides the main one: %d; clones do not have them, and what such a thread has locked stays "
                 "locked there", count);
    }
}

static const char *errno_name(int number) {
    switch (number) {
    case EAGAIN: return "EAGAIN";
    case ENOMEM: return "ENOMEM";
    case ENOSYS: return "ENOSYS";
    case EPERM: return "EPERM";
    case EINVAL: return "EINVAL";
    default: return "EIO";
    }
}

/* regen's socket, or -1 after a word on standard error. */
static int connect_to_regen(void) {
    const char *version = getenv("REGEN_OCI_ZYGOTE");
    const char *number = getenv("REGEN_OCI_ZYGOTE_FD");
    if (version == NULL) {
        complain("REGEN_OCI_ZYGOTE is not set: regen starts templates, see 'regen template create --help'");
        return -1;
    }
    if (strcmp(version, REGEN_ZYGOTE_VERSION) != 0) {
        complain("regen speaks version %s of the zygote protocol, this program version %s: build it with the library that came "
                 "with regen", version, REGEN_ZYGOTE_VERSION);
        return -1;
    }
    char *end;
    errno = 0;
    long socket = strtol(number == NULL ? "3" : number, &end, 10);
    if (*end != '\0' || errno != 0 || socket < 0 || socket > INT_MAX || fcntl((int)socket, F_SETFD, FD_CLOEXEC) != 0) {
        complain("REGEN_OCI_ZYGOTE_FD=%s is no open descriptor", number == NULL ? "3" : number);
        return -1;
    }
    unsetenv("REGEN_OCI_ZYGOTE");
    unsetenv("REGEN_OCI_ZYGOTE_FD");
    return (int)socket;
}

/* The number of a message 'fork N', NULL if it is another one. */
static const char *requested(const char *message, ssize_t size) {
    const char *number = message + 5;
    if (size <= 5 || size > MESSAGE || strncmp(message, "fork ", 5) != 0 || strlen(message) != (size_t)size)
        return NULL;
    return strspn(number, "0123456789") == strlen(number) ? number : NULL;
}

/* Takes and answers one request. 1 to go on, 0 in a clone, -1 at the end, -2 if it is no request. */
static int serve_one(int socket) {
    char message[MESSAGE + 2], reply[MESSAGE + 64];
    ssize_t size = read(socket, message, MESSAGE + 1);
    if (size < 0 && errno == EINTR)
        return 1;
    if (size <= 0)
        return -1;
    message[size] = '\0';
    const char *number = requested(message, size);
    if (number == NULL)
        return -2;
    pid_t pid = fork();
    if (pid == 0)
        return 0;
    int length = pid > 0 ? snprintf(reply, sizeof reply, "forked %s %ld", number, (long)pid)
                         : snprintf(reply, sizeof reply, "failed %s %s", number, errno_name(errno));
    return write_all(socket, reply, (size_t)length) == 0 ? 1 : -1;
}

int regen_zygote_serve(regen_entry *entry, const char *language) {
    static char own[PATH_MAX];
    int socket = connect_to_regen();
    if (socket < 0)
        return 1;
    /* Nothing is ours without it: every command line is executed. */
    ssize_t length = readlink("/proc/self/exe", own, sizeof own - 1);
    own[length < 0 ? 0 : length] = '\0';
    char ready[MESSAGE];
    int size = snprintf(ready, sizeof ready, "ready %s %s", REGEN_ZYGOTE_VERSION, language);
    fflush(NULL);
    look_for_threads();
    if (size < 0 || (size_t)size >= sizeof ready || write_all(socket, ready, (size_t)size) != 0)
        return 1;
    int next;
    while ((next = serve_one(socket)) > 0)
        /* Only now: nobody waits for it. */
        look_for_threads();
    if (next == 0) {
        /* Only without regen, which leaves nothing else open. */
        if (socket != JOB && socket != RESULT)
            close(socket);
        run(entry, own);
    }
    if (next == -2)
        complain("regen sent what version %s of the zygote protocol does not have", REGEN_ZYGOTE_VERSION);
    return next == -2;
}
