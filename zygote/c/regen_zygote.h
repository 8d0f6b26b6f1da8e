/* Makes a program a template of regen's: it prepares once, and every clone of it begins behind that.
 *
 *     static int entry(int argc, char **argv, const struct regen_call *call) { ... }
 *
 *     int main(int argc, char **argv) {
 *         load_what_takes_long();
 *         if (getenv("REGEN_OCI_ZYGOTE") == NULL)
 *             return entry(argc, argv, NULL);            // started by hand, or cold
 *         return regen_zygote_serve(entry, "c");
 *     }
 *
 * The protocol, and what is and is not in a clone, are in regen's docs/zygote.md. In short: of the descriptors only 0, 1
 * and 2 are there, of the threads only the one that called regen_zygote_serve, and random numbers have to be seeded anew.
 */

#ifndef REGEN_ZYGOTE_H
#define REGEN_ZYGOTE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of the protocol that this library speaks. */
#define REGEN_ZYGOTE_VERSION "1"

/* A call of a function. */
struct regen_call {
    /* MODULE:NAME, as it was asked for; what a name means is the program's affair. UTF-8. */
    const char *handler;
    /* What it is called with: one JSON text, UTF-8, and its length without the NUL at its end. */
    const char *event;
    size_t event_length;
};

/* What a clone does.
 *
 * Without a call it is the program with these arguments: argv[0] is this executable, however it was named; environ is the
 * clone's. With a call, argc may be 0, and it answers by regen_call_result or regen_call_error. What it returns is the
 * exit status. Handlers of atexit(3) run, as after main. */
typedef int regen_entry(int argc, char **argv, const struct regen_call *call);

/* Tells regen that the program is ready, and forks when it is asked to.
 *
 * language is free text for people: "c", "lua 5.4". Every clone runs entry and ends; a clone whose command line is not of
 * this executable becomes that other program by execve(2), with the status 127 or 126 if it cannot. In the template it
 * returns at its end: 0 when regen has closed the socket, 1 if regen cannot be spoken with, which it has told standard
 * error. It may be called in any thread, at best the only one, and once. */
int regen_zygote_serve(regen_entry *entry, const char *language);

/* Answers the call with a result: one JSON text, which is not looked at. 0, or -1 with errno: EALREADY after an answer,
 * EINVAL if there is no call. */
int regen_call_result(const char *json, size_t length);

/* Answers the call with an error and its message, any text: what is no UTF-8 in it becomes U+FFFD. The types
 * HandlerNotFound, HandlerNotCallable and ResultNotJson are the protocol's, others the program's own. As above. */
int regen_call_error(const char *type, const char *message);

#ifdef __cplusplus
}
#endif

#endif
