/*
 * Prints the addresses that three calls return to, then the memory at the stack
 * pointer, and waits for the end of its input.
 */
#include <stdio.h>

#define NOINLINE __attribute__((noinline))

NOINLINE static void show(void)
{
	/* Two words that earlier calls could have left: a call returns to the first. */
	void *volatile local[] = {__builtin_return_address(2), (void *)show};
	void **word = (void **)local, **end = (void **)__builtin_frame_address(0) + 4;

	printf("%p\n%p\n%p\n", __builtin_return_address(0), __builtin_return_address(1),
	       __builtin_return_address(2));
	for (; word < end; word++)
		printf("top\t%p\n", *word);
	printf("\n");
	fflush(stdout);
}

NOINLINE static int connect_to(int port)
{
	show(); /* in connect_to */
	return port + 1;
}

/* By the name that a C++ compiler gives to app::pool::fetch(int). */
NOINLINE int fetch(int port) __asm__("_ZN3app4pool5fetchEi");
int fetch(int port)
{
	int n = 2 * port;
	return connect_to(n) + n; /* in app::pool::fetch */
}

int main(void)
{
	int n = fetch(40); /* in main */
	while (getchar() != EOF)
		n++;
	return n == 0;
}
