/* A template in C: it finds the primes up to two million once, and each clone only looks them up.
 *
 *     primes 1 100 5000          prints the first, the hundredth and the five thousandth prime
 *     primes:count, event 100    a call: how many primes there are up to 100
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "regen_zygote.h"

enum { LIMIT = 2000000, MOST = 150000 };

static int primes[MOST];
static int known;

static void find_primes(void) {
    static char composite[LIMIT];
    for (int number = 2; number < LIMIT && known < MOST; number++) {
        if (composite[number])
            continue;
        primes[known++] = number;
        for (long multiple = (long)number * number; multiple < LIMIT; multiple += number)
            composite[multiple] = 1;
    }
}

/* A whole number between least and most, and nothing else; -1 if it is none. */
static long parse(const char *text, long least, long most) {
    char *end;
    errno = 0;
    long number = strtol(text, &end, 10);
    return end == text || *end != '\0' || errno != 0 || number < least || number > most ? -1 : number;
}

static int answer(const struct regen_call *call) {
    if (strcmp(call->handler, "primes:count") != 0)
        return regen_call_error("HandlerNotFound", "there is only 'primes:count'"), 1;
    long limit = parse(call->event, 0, LIMIT - 1);
    if (limit < 0)
        return regen_call_error("EventNotNumber", "the event is no number from 0 to 1999999"), 1;
    int count = 0;
    while (count < known && primes[count] <= limit)
        count++;
    char result[20];
    int length = snprintf(result, sizeof result, "%d", count);
    return regen_call_result(result, (size_t)length) == 0 ? 0 : 1;
}

static int entry(int argc, char **argv, const struct regen_call *call) {
    if (call != NULL)
        return answer(call);
    for (int index = 1; index < argc; index++) {
        long number = parse(argv[index], 1, known);
        if (number < 0) {
            fprintf(stderr, "primes: '%s' is no number from 1 to %d\n", argv[index], known);
            return 2;
        }
        printf("%d\n", primes[number - 1]);
    }
    return 0;
}

int main(int argc, char **argv) {
    find_primes();
    if (getenv("REGEN_OCI_ZYGOTE") == NULL)
        return entry(argc, argv, NULL);
    return regen_zygote_serve(entry, "c");
}
