/* examples/llmkit/args.h -- command-line flags from one table */
#ifndef LK_ARGS_H
#define LK_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A command describes its flags in a table; each names a field of the command's options struct by
 * its offset.  What the fields hold before are the defaults.  `--max_attempts 3`,
 * `--max-attempts 3` and `--max_attempts=3` are the same; "--" ends the flags, and "-" is none. */
typedef enum lk_flag_kind { /* Field           Value on the command line */
    LK_FLAG_HEADING,        /* none            a line of its own in the help */
    LK_FLAG_BOOL,           /* bool            none; =true and =false are understood */
    LK_FLAG_TEXT,           /* const char *    anything */
    LK_FLAG_TEXTS,          /* lk_texts        anything; the flag may be repeated */
    LK_FLAG_COUNT,          /* uint32_t        digits */
    LK_FLAG_COUNT64,        /* uint64_t        digits */
    LK_FLAG_NUMBER,         /* double          a decimal number */
    LK_FLAG_CHOICE          /* unsigned        a word of value, "fixed|uniform": its place there */
} lk_flag_kind;

typedef struct lk_flag {
    const char  *name;  /* with underscores */
    lk_flag_kind kind;
    size_t       field; /* offsetof(options, field) */
    const char  *value; /* what the help calls it: "N", "FILE" */
    const char  *help;
    char         letter;   /* 'm' for -m as well; 0: none */
    bool         required; /* for TEXT and TEXTS */
    double       min, max; /* of numbers; both 0: any that the field holds, not negative */
} lk_flag;

enum { LK_MAX_TEXTS = 256 };

typedef struct lk_texts {
    const char *item[LK_MAX_TEXTS];
    size_t      num;
} lk_texts;

typedef struct lk_args {
    const char    *command;  /* "llmkit chat" */
    const char    *operands; /* what may follow the flags, for the help: "[PROMPT | -]", or "" */
    int            max_operands;
    const char    *about; /* above the flags in the help */
    const lk_flag *flags;
    size_t         num_flags;
    const char    *notes; /* below them; may be NULL */
} lk_args;

/* Fills options.  true: *argc and argv are left with the operands alone, in order.  false: exit
 * with *status, everything has been said: help on standard output (0), or what is wrong on
 * standard error (1). */
bool lk_args_parse(const lk_args *args, void *options, int *argc, char **argv, int *status);

#endif
