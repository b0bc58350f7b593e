/*
 * Like server.c, but between main and the function that calls show() lies one that
 * jumps to it, so that the stack holds no trace of that one.
 */
#include <stdio.h>

#define NOINLINE __attribute__((noinline))

NOINLINE static void show(void)
{
	printf("%p\n%p\n%p\n", __builtin_return_address(0), __builtin_return_address(1), (void *)show);
	printf("\n");
	fflush(stdout);
}

NOINLINE static int connect_to(int port)
{
	volatile int kept = port;

	show();
	return kept + 1;
}

NOINLINE static int fetch(int port)
{
	return connect_to(2 * port);
}

int main(void)
{
	int n = fetch(40);
	while (getchar() != EOF)
		n++;
	return n == 0;
}
