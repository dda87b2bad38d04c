#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: greet NAME\n");
        return 2;
    }
    if (strcmp(argv[1], "--version") == 0)
        return puts("greet " VERSION) < 0;
    return printf("Good day, %s!\n", argv[1]) < 0;
}
