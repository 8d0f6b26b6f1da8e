/* A container's first process: waits for the first child that ends, writes how into a file, and ends the same way. */
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **arguments) {
    int status;
    pid_t child;
    while ((child = wait(&status)) < 0) usleep(1000);
    FILE *file = fopen(arguments[count - 1], "w");
    fprintf(file, "%d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    fclose(file);
    return 0;
}
