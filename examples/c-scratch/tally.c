/* The N commonest words of standard input, each with its count. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *SEPARATOR = " ";

struct word { char *text; long count; };

static struct word *words;
static size_t used, room;

static void count(const char *text)
{
    for (size_t i = 0; i < used; i++)
        if (strcmp(words[i].text, text) == 0) {
            words[i].count++;
            return;
        }
    if (used == room) {
        room = room ? 2 * room : 64;
        words = realloc(words, room * sizeof *words);
        if (!words) exit(3);
    }
    char *copy = malloc(strlen(text) + 1);
    if (!copy) exit(3);
    words[used++] = (struct word){strcpy(copy, text), 1};
}

static int commoner(const void *a, const void *b)
{
    const struct word *x = a, *y = b;
    if (x->count != y->count) return x->count < y->count ? 1 : -1;
    return strcmp(x->text, y->text);
}

int main(int argc, char **argv)
{
    char *end = "?", text[256];
    long wanted = argc > 1 ? strtol(argv[1], &end, 10) : 10;
    if (argc > 1 && (*end || wanted < 1)) {
        fprintf(stderr, "usage: tally [N]\n");
        return 2;
    }
    size_t length = 0;
    int c;
    do {
        c = getchar();
        if (c != EOF && isalpha(c)) {
            if (length < sizeof text - 1) text[length++] = (char)tolower(c);
        } else if (length) {
            text[length] = 0;
            count(text);
            length = 0;
        }
    } while (c != EOF);
    qsort(words, used, sizeof *words, commoner);
    for (size_t i = 0; i < used && (long)i < wanted; i++)
        printf("%ld%s%s\n", words[i].count, SEPARATOR, words[i].text);
    return 0;
}
