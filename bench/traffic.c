/*
 * TCP traffic between namespaces, and how much of it goes through.
 *
 *     traffic serve PORT                          answers those below, until it is killed
 *     traffic stream|trips|connects ADDRESS PORT MILLISECONDS
 *
 * stream: send as fast as it goes, prints bits a second. trips: one byte there and back on one
 * connection, prints round trips a second. connects: the same on a new connection each time.
 */
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 128 * 1024 };
static char chunk[CHUNK];

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* A connection's first byte says what is wanted: '>' to take all and answer its end, else to echo. */
static void answer(int peer)
{
	ssize_t size = read(peer, chunk, 1);

	if (size == 1 && chunk[0] == '>') {
		while (read(peer, chunk, CHUNK) > 0)
			;
		size = write(peer, "x", 1);
	} else {
		while (size > 0 && write(peer, chunk, size) == size)
			size = read(peer, chunk, CHUNK);
	}
	close(peer);
}

static void serve(struct sockaddr_in *address)
{
	int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

	signal(SIGCHLD, SIG_IGN);
	address->sin_addr.s_addr = INADDR_ANY;
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)address, sizeof(*address)) || listen(listener, 64))
		err(1, "serve");
	puts("ready");
	fflush(stdout);
	for (;;) {
		int peer = accept(listener, NULL, NULL);

		setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		/* A process for those that stay would be fork's time in each of many short ones. */
		if (recv(peer, chunk, 1, MSG_PEEK) == 1 && chunk[0] != '1') {
			if (fork() == 0) {
				close(listener);
				answer(peer);
				_exit(0);
			}
			close(peer);
		} else {
			answer(peer);
		}
	}
}

static int dial(struct sockaddr_in *address)
{
	/* Closing at once by a reset leaves no connection waiting, and so no port in use. */
	struct linger none = {.l_onoff = 1, .l_linger = 0};
	int on = 1, peer = socket(AF_INET, SOCK_STREAM, 0);

	if (connect(peer, (struct sockaddr *)address, sizeof(*address)))
		err(1, "connect");
	setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(peer, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
	return peer;
}

static void trip(int peer, char byte)
{
	if (write(peer, &byte, 1) != 1 || read(peer, &byte, 1) != 1)
		err(1, "trip");
}

static double stream(int peer, double start, double seconds)
{
	double sent = 0;

	if (write(peer, ">", 1) != 1)
		err(1, "stream");
	while (now() - start < seconds) {
		ssize_t size = write(peer, chunk, CHUNK);

		if (size < 0)
			err(1, "stream");
		sent += size;
	}
	shutdown(peer, SHUT_WR);
	if (read(peer, chunk, 1) != 1) /* all has arrived */
		err(1, "stream");
	return sent * 8;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	double start, seconds, count = 0;
	int peer;

	if (argc == 3 && !strcmp(argv[1], "serve")) {
		address.sin_port = htons(atoi(argv[2]));
		serve(&address);
	}
	if (argc != 5 || !inet_aton(argv[2], &address.sin_addr))
		errx(2, "usage: traffic serve PORT | stream|trips|connects ADDRESS PORT MILLISECONDS");
	address.sin_port = htons(atoi(argv[3]));
	seconds = atof(argv[4]) / 1000;
	start = now();
	if (!strcmp(argv[1], "connects")) {
		for (; now() - start < seconds; count++) {
			peer = dial(&address);
			trip(peer, '1');
			close(peer);
		}
	} else {
		peer = dial(&address);
		if (!strcmp(argv[1], "stream")) {
			count = stream(peer, start, seconds);
		} else {
			for (; now() - start < seconds; count++)
				trip(peer, '2');
		}
	}
	printf("%.0f", count / (now() - start));
	return 0;
}
