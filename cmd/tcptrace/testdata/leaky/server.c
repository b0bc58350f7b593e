// A server that reads what a client sends, up to its end of file, and never closes.
// It says on which port it listens.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

static __attribute__((noinline)) int take(int listener)
{
	int fd = accept(listener, NULL, NULL);
	return fd;
}

static __attribute__((noinline)) void serve(int listener)
{
	char buf[512];
	for (;;) {
		int fd = take(listener);
		while (read(fd, buf, sizeof buf) > 0)
			;
		// close(fd) is missing.
	}
}

int main(void)
{
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof addr;
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&addr, sizeof addr) || listen(listener, 128) ||
	    getsockname(listener, (struct sockaddr *)&addr, &size)) {
		perror("server");
		return 1;
	}
	printf("%d\n", ntohs(addr.sin_port));
	fflush(stdout);
	serve(listener);
	return 0;
}
