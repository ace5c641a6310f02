/* examples/llmkit/args.c -- command-line flags from one table */
#include "args.h"

#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LINE_WIDTH = 96, /* of the help */
    HELP_COLUMN = 34 /* where the text of a flag begins, unless all flags are shorter */
};

/* Why a value was refused, for the end of a sentence that begins with the flag. */
typedef struct reason {
    char text[160];
} reason;

static bool refuse(reason *why, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(why->text, sizeof why->text, format, args);
    va_end(args);
    return false;
}

static bool same_name(const char *name, const char *given, size_t len) {
    if (strlen(name) != len) return false;
    for (size_t i = 0; i < len; i++) {
        char c = given[i] == '-' ? '_' : given[i];
        if (c != name[i]) return false;
    }
    return true;
}

static const lk_flag *find_flag(const lk_args *args, const char *given, size_t len) {
    for (size_t i = 0; i < args->num_flags; i++) {
        const lk_flag *flag = &args->flags[i];
        if (flag->kind != LK_FLAG_HEADING && same_name(flag->name, given, len)) return flag;
    }
    return NULL;
}

static const lk_flag *find_letter(const lk_args *args, char letter) {
    for (size_t i = 0; i < args->num_flags; i++) {
        if (letter != '\0' && args->flags[i].letter == letter) return &args->flags[i];
    }
    return NULL;
}

static bool set_bool(bool *field, const char *value, reason *why) {
    if (value && strcmp(value, "true") != 0 && strcmp(value, "false") != 0) {
        return refuse(why, "takes true, false or no value");
    }
    *field = !value || strcmp(value, "true") == 0;
    return true;
}

static bool set_texts(lk_texts *field, const char *value, reason *why) {
    if (field->num == LK_MAX_TEXTS) return refuse(why, "can be given %d times", LK_MAX_TEXTS);
    field->item[field->num++] = value;
    return true;
}

static bool check_range(const lk_flag *flag, double number, reason *why) {
    if (flag->min == 0 && flag->max == 0) {
        return number >= 0 || refuse(why, "must not be negative");
    }
    return (number >= flag->min && number <= flag->max) ||
           refuse(why, "must be from %.15g to %.15g", flag->min, flag->max);
}

static bool get_count(const lk_flag *flag, uint64_t most, const char *value, uint64_t *out,
                      reason *why) {
    errno = 0;
    char *end;
    *out = strtoull(value, &end, 10);
    if (*value < '0' || *value > '9' || *end != '\0') return refuse(why, "must be a whole number");
    if (errno == ERANGE || *out > most) return refuse(why, "must be at most %" PRIu64, most);
    return check_range(flag, (double)*out, why);
}

static bool set_number(const lk_flag *flag, double *field, const char *value, reason *why) {
    static const char first[] = "+-.0123456789"; /* strtod would take spaces, nan and inf, too */
    char *end;
    *field = strtod(value, &end);
    if (*value == '\0' || !strchr(first, *value) || *end != '\0' || *field > DBL_MAX) {
        return refuse(why, "must be a number");
    }
    return check_range(flag, *field, why);
}

static bool set_choice(const lk_flag *flag, unsigned *field, const char *value, reason *why) {
    const char *word = flag->value;
    for (unsigned place = 0;; place++) {
        size_t len = strcspn(word, "|");
        if (strlen(value) == len && memcmp(value, word, len) == 0) {
            *field = place;
            return true;
        }
        if (word[len] == '\0') return refuse(why, "must be one of %s", flag->value);
        word += len + 1;
    }
}

static bool set_field(const lk_flag *flag, void *options, const char *value, reason *why) {
    void *field = (char *)options + flag->field;
    uint64_t count;
    switch (flag->kind) {
    case LK_FLAG_HEADING: break;
    case LK_FLAG_BOOL: return set_bool(field, value, why);
    case LK_FLAG_TEXT: *(const char **)field = value; break;
    case LK_FLAG_TEXTS: return set_texts(field, value, why);
    case LK_FLAG_COUNT:
        if (!get_count(flag, UINT32_MAX, value, &count, why)) return false;
        *(uint32_t *)field = (uint32_t)count;
        break;
    case LK_FLAG_COUNT64:
        if (!get_count(flag, UINT64_MAX, value, &count, why)) return false;
        *(uint64_t *)field = count;
        break;
    case LK_FLAG_NUMBER: return set_number(flag, field, value, why);
    case LK_FLAG_CHOICE: return set_choice(flag, field, value, why);
    }
    return true;
}

static bool is_missing(const lk_flag *flag, const void *options) {
    const void *field = (const char *)options + flag->field;
    if (!flag->required) return false;
    if (flag->kind == LK_FLAG_TEXTS) return ((const lk_texts *)field)->num == 0;
    return flag->kind == LK_FLAG_TEXT && *(const char *const *)field == NULL;
}

/* "  -m, --model MODEL" */
static int write_usage(const lk_flag *flag, char *out, size_t size) {
    char letter[8] = "    ";
    if (flag->letter) snprintf(letter, sizeof letter, "-%c, ", flag->letter);
    return snprintf(out, size, "  %s--%s%s%s", letter, flag->name, flag->value ? " " : "",
                    flag->value ? flag->value : "");
}

static void print_wrapped(const char *text, int column, int at) {
    while (*text) {
        int len = (int)strcspn(text, " ");
        if (at > column && at + 1 + len > LINE_WIDTH) {
            printf("\n%*s", column, "");
            at = column;
        }
        at += printf("%s%.*s", at > column ? " " : "", len, text);
        text += len;
        text += strspn(text, " ");
    }
    putchar('\n');
}

static void print_flag(const lk_flag *flag, int column) {
    if (flag->kind == LK_FLAG_HEADING) {
        printf("\n%s\n", flag->help);
        return;
    }
    char usage[128];
    int len = write_usage(flag, usage, sizeof usage);
    fputs(usage, stdout);
    if (len + 2 > column) {
        putchar('\n');
        len = 0;
    }
    printf("%*s", column - len, "");
    print_wrapped(flag->help, column, column);
}

static void print_help(const lk_args *args) {
    static const lk_flag help = { .name = "help", .kind = LK_FLAG_BOOL, .letter = 'h',
                                  .help = "print this" };
    int column = 0;
    for (size_t i = 0; i < args->num_flags; i++) {
        char usage[128];
        if (args->flags[i].kind == LK_FLAG_HEADING) continue;
        int len = write_usage(&args->flags[i], usage, sizeof usage) + 2;
        if (len > column && len <= HELP_COLUMN) column = len;
    }
    printf("usage: %s [flags]%s%s\n\n%s\n\n", args->command, args->operands[0] ? " " : "",
           args->operands, args->about);
    size_t first = 0; /* --help goes with the flags above the first heading */
    while (first < args->num_flags && args->flags[first].kind != LK_FLAG_HEADING) first++;
    for (size_t i = 0; i < first; i++) print_flag(&args->flags[i], column);
    print_flag(&help, column);
    for (size_t i = first; i < args->num_flags; i++) print_flag(&args->flags[i], column);
    if (args->notes) printf("\n%s\n", args->notes);
}

static bool complain(const lk_args *args, const char *subject, int len, const char *what) {
    fprintf(stderr, "%s: %.*s %s\n", args->command, len, subject, what);
    fprintf(stderr, "Try '%s --help'.\n", args->command);
    return false;
}

/* One flag and, where it has one, its value.  argv[*at] is the flag; *at moves to the last word
 * that belongs to it. */
static bool parse_flag(const lk_args *args, void *options, int argc, char **argv, int *at) {
    const char *word = argv[*at];
    bool is_long = word[1] == '-';
    const char *name = word + (is_long ? 2 : 1);
    size_t len = is_long ? strcspn(name, "=") : 1;
    const lk_flag *flag = is_long ? find_flag(args, name, len) : find_letter(args, name[0]);
    int shown = (int)len + (is_long ? 2 : 1);
    if (!flag) return complain(args, word, shown, "is not a flag of this command");

    const char *value = NULL;
    if (name[len] != '\0') {
        value = name + len + (name[len] == '=');
    } else if (flag->kind != LK_FLAG_BOOL) {
        if (*at + 1 == argc) return complain(args, word, shown, "needs a value");
        value = argv[++*at];
    }
    reason why;
    if (set_field(flag, options, value, &why)) return true;
    char what[240];
    snprintf(what, sizeof what, "%s, not '%.60s'", why.text, value ? value : "");
    return complain(args, word, shown, what);
}

static bool is_help(const char *word) {
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
}

static bool check_all(const lk_args *args, const void *options, int num_operands, char **operands) {
    for (size_t i = 0; i < args->num_flags; i++) {
        const lk_flag *flag = &args->flags[i];
        if (flag->kind == LK_FLAG_HEADING || !is_missing(flag, options)) continue;
        fprintf(stderr, "%s: --%s %s is missing\n", args->command, flag->name, flag->value);
        fprintf(stderr, "Try '%s --help'.\n", args->command);
        return false;
    }
    if (num_operands <= args->max_operands) return true;
    const char *extra = operands[args->max_operands];
    return complain(args, extra, (int)strlen(extra), "is one argument too many");
}

bool lk_args_parse(const lk_args *args, void *options, int *argc, char **argv, int *status) {
    int num = 0;
    bool flags_over = false;
    *status = 1;
    for (int i = 1; i < *argc; i++) {
        char *word = argv[i];
        if (flags_over || word[0] != '-' || word[1] == '\0') {
            argv[num++] = word;
        } else if (strcmp(word, "--") == 0) {
            flags_over = true;
        } else if (is_help(word)) {
            print_help(args);
            *status = 0;
            return false;
        } else if (!parse_flag(args, options, *argc, argv, &i)) {
            return false;
        }
    }
    if (!check_all(args, options, num, argv)) return false;
    *argc = num;
    argv[num] = NULL;
    *status = 0;
    return true;
}
