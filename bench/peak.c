/*
 * Run a program and print the peak of its resident memory, or of a process that it waited for, in
 * KiB. A small process has to start it: what is resident before an exec counts as well.
 *
 *     peak PROGRAM
 */
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct rusage usage;
	int status, nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
	pid_t child = argc == 2 ? fork() : -1;

	if (child == 0) {
		dup2(nowhere, STDOUT_FILENO);
		execl(argv[1], argv[1], NULL);
		err(1, "%s", argv[1]);
	}
	if (child < 0 || wait4(child, &status, 0, &usage) < 0)
		err(1, "peak PROGRAM");
	printf("%ld", usage.ru_maxrss);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
