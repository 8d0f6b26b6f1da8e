/* What `warm` clones: a static program that has a megabyte of state, and prints one line. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "regen_zygote.h"

static char *state;

static int entry(int argc, char **argv, const struct regen_call *call)
{
	(void)call;
	if (write(1, "x\n", 2) != 2)
		return 1;
	if (argc > 1 && strcmp(argv[1], "stay") == 0)
		pause();
	return state[7] != 1;
}

int main(void)
{
	state = malloc(1 << 20);
	if (state == NULL)
		return 1;
	memset(state, 1, 1 << 20);
	return regen_zygote_serve(entry, "c");
}
