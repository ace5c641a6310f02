/* amalgamate.c -- joins the pieces in amalgamate/ into the one header llmkit.h
 *
 *     amalgamate DIR OUT                  writes OUT
 *     amalgamate --check DIR OUT          exit status 1 if OUT is not what DIR makes
 *     amalgamate --where N DIR            the piece and line that line N of the output comes from
 *     amalgamate --bundle JSMN_H DIR OUT  writes OUT with the text of jsmn.h in it
 *
 * DIR/llmkit.h, the umbrella, is C that compiles by itself and lists the pieces from bottom to top.
 * Its quoted includes become the text of the piece under a banner; those in a piece only say what
 * it uses: they are checked and vanish.  @toc becomes a table of contents, the line with @sum the
 * definition of LK__SOURCE_SUM.  The same input makes the same output on any machine. */
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_COLUMNS = 100,
    MAX_LINES   = 32767, /* debuggers that keep line numbers in 16 bits still find every line */
    MAX_PIECES  = 250,
    MAX_NAME    = 64,
    MAX_SUMMARY = 76 /* what the table of contents has room for */
};

typedef struct piece {
    char   name[MAX_NAME]; /* its path below DIR, as includes and banners have it */
    char  *text;
    size_t len;
    char   summary[MAX_COLUMNS]; /* from its first comment */
} piece;

typedef struct joiner {
    const char *dir;
    piece       pieces[MAX_PIECES]; /* the umbrella, then the others as it lists them */
    int         num;
    piece       jsmn; /* text NULL: its include stays */
    char       *out;
    size_t      len, cap;
    int         lines;
    bool        blank; /* the last line of out is empty */
    int         faults;
    struct {
        const piece *from; /* NULL: this program wrote the line */
        int          line;
    } origin[MAX_LINES + 1];
} joiner;

typedef struct line {
    const char *ptr, *next, *end; /* next, end: of the text */
    size_t      len;
    int         number;
} line;

static void die(const char *what, const char *name) {
    fprintf(stderr, "amalgamate: %s %s\n", what, name);
    exit(1);
}

static void fault(joiner *j, const piece *p, int number, const char *format, ...) {
    va_list args;
    fprintf(stderr, "%s/%s:%d: ", j->dir, p->name, number);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    j->faults++;
}

static char *read_file(const char *path, size_t *len) {
    size_t cap = 1 << 16, got;
    FILE *file = fopen(path, "rb");
    char *text = malloc(cap);
    if (!file) die("cannot open", path);
    *len = 0;
    while (text && (got = fread(text + *len, 1, cap - *len - 1, file)) > 0) {
        *len += got;
        if (cap - *len < 2) text = realloc(text, cap *= 2);
    }
    if (!text || ferror(file)) die("cannot read", path);
    fclose(file);
    text[*len] = '\0';
    return text;
}

/* The lines of a piece: for (line l = first_line(p); next_line(&l);) */
static line first_line(const piece *p) {
    return (line){ .next = p->text, .end = p->text + p->len };
}

static bool next_line(line *l) {
    if (l->next == l->end) return false;
    const char *feed = memchr(l->next, '\n', (size_t)(l->end - l->next));
    l->ptr = l->next;
    l->len = (size_t)((feed ? feed : l->end) - l->ptr);
    l->next = feed ? feed + 1 : l->end;
    l->number++;
    return true;
}

static bool starts(const line *l, const char *prefix) {
    return strncmp(l->ptr, prefix, strlen(prefix)) == 0;
}

/* What a line includes in quotes (mark '"') or in angle brackets (mark '<'). */
static bool includes(const line *l, char mark, char name[MAX_NAME]) {
    const char *format = mark == '<' ? "# include <%63[^>\n]" : "# include \"%63[^\"\n]";
    return sscanf(l->ptr + strspn(l->ptr, " "), format, name) == 1;
}

static const piece *find_piece(const joiner *j, const char *name) {
    for (int i = 0; i < j->num; i++)
        if (strcmp(j->pieces[i].name, name) == 0) return &j->pieces[i];
    return NULL;
}

/* Pieces of one layer do not know those of another of the same rank. */
static int rank_of(const char *name) {
    static const char *const layers[] = { "api/", "core/", "policy/ obs/ net/", "llm/", "srv/" };
    char layer[MAX_NAME];
    snprintf(layer, sizeof layer, "%.*s", (int)strcspn(name, "/") + 1, name);
    for (int i = 0; i < (int)(sizeof layers / sizeof layers[0]); i++)
        if (strstr(layers[i], layer)) return i;
    return -1;
}

static bool may_use(const char *user, const char *used) {
    size_t dir = strcspn(user, "/") + 1;
    return strncmp(user, used, dir) == 0 || rank_of(used) < rank_of(user);
}

static bool may_include_system(const char *name, const char *header) {
    if (strcmp(name, "api/config.h") == 0) return strcmp(header, "assert.h") == 0;
    return strcmp(name, "api/base.h") == 0 || strcmp(name, "core/platform.h") == 0;
}

static void check_include(joiner *j, const piece *p, const line *l, bool after_code) {
    char name[MAX_NAME];
    if (includes(l, '<', name)) {
        if (!may_include_system(p->name, name))
            fault(j, p, l->number, "<%s> belongs into core/platform.h", name);
    } else if (includes(l, '"', name)) {
        const piece *used = find_piece(j, name);
        if (!used || used == p)
            fault(j, p, l->number, "list \"%s\" in the umbrella, above this file", name);
        else if (!may_use(p->name, name))
            fault(j, p, l->number, "a piece of this layer must not use \"%s\"", name);
        if (after_code) fault(j, p, l->number, "includes stand above the code");
    }
}

static void check_bytes(joiner *j, const piece *p, const line *l) {
    if (l->len > MAX_COLUMNS) fault(j, p, l->number, "over %d columns", MAX_COLUMNS);
    if (l->len && l->ptr[l->len - 1] == ' ') fault(j, p, l->number, "blanks at the end");
    if (l->next[-1] != '\n') fault(j, p, l->number, "the last line does not end");
    for (size_t i = 0; i < l->len; i++) {
        if (l->ptr[i] >= ' ' && l->ptr[i] <= '~') continue;
        fault(j, p, l->number, "byte 0x%02x in column %d", (unsigned)(uint8_t)l->ptr[i],
              (int)i + 1);
        return;
    }
}

static void check_piece(joiner *j, const piece *p) {
    bool comment = false, code = false;
    bool declares = rank_of(p->name) == 0 && strcmp(p->name, "api/config.h") != 0;
    for (line l = first_line(p); next_line(&l);) {
        check_bytes(j, p, &l);
        if (comment || starts(&l, "/*")) {
            const char *end = strstr(l.ptr, "*/");
            comment = !end || end > l.ptr + l.len;
        } else if (l.len && l.ptr[0] != '#') {
            code = true;
        }
        if (p != j->pieces) check_include(j, p, &l, code);
        /* A struct that depends on a macro would differ between the units of one program. */
        if (declares && starts(&l, "#if") && !starts(&l, "#ifdef __cplusplus\n"))
            fault(j, p, l.number, "no conditions in api/, but for __cplusplus");
    }
}

static void take_summary(joiner *j, piece *p) {
    char name[MAX_NAME];
    if (sscanf(p->text, "/* %63s -- %99[^\n]", name, p->summary) != 2 || strcmp(name, p->name) != 0)
        fault(j, p, 1, "begin with: /* %s -- a summary of one line", p->name);
    char *end = strstr(p->summary, " */");
    if (end) *end = '\0';
    if (strlen(p->summary) > MAX_SUMMARY)
        fault(j, p, 1, "the summary is over %d columns", MAX_SUMMARY);
}

static void load(joiner *j, const char *name, const piece *by, int number) {
    char path[1024];
    if (j->num == MAX_PIECES) die("too many pieces at", name);
    if (find_piece(j, name)) {
        fault(j, by, number, "\"%s\" is listed twice", name);
        return;
    }
    piece *p = &j->pieces[j->num++];
    snprintf(p->name, sizeof p->name, "%s", name);
    snprintf(path, sizeof path, "%s/%s", j->dir, name);
    p->text = read_file(path, &p->len);
    take_summary(j, p);
    check_piece(j, p);
}

static void load_all(joiner *j) {
    char name[MAX_NAME];
    load(j, "llmkit.h", NULL, 0);
    for (line l = first_line(j->pieces); next_line(&l);)
        if (includes(&l, '"', name)) load(j, name, j->pieces, l.number);
}

/* FNV-1a of 64 bits (Fowler, Noll and Vo) over all that was read. */
static uint64_t sum_of(const joiner *j) {
    uint64_t sum = 0xcbf29ce484222325;
    for (int i = 0; i < j->num; i++)
        for (size_t k = 0; k < j->pieces[i].len; k++)
            sum = (sum ^ (uint8_t)j->pieces[i].text[k]) * 0x100000001b3;
    return sum;
}

/* Appends a line.  Of blank lines that come to stand together only the first stays. */
static void put(joiner *j, const piece *from, int number, const char *text, size_t len) {
    if (len == 0 && j->blank) return;
    j->blank = len == 0;
    if (++j->lines > MAX_LINES) die("too many lines in", "the output");
    j->origin[j->lines].from = from;
    j->origin[j->lines].line = number;
    while (j->cap - j->len < len + 2) {
        j->out = realloc(j->out, j->cap = j->cap * 2 + 4096);
        if (!j->out) die("no memory for", "the output");
    }
    memcpy(j->out + j->len, text, len);
    j->out[j->len + len] = '\n';
    j->len += len + 1;
}

static void put_format(joiner *j, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (len > MAX_COLUMNS) die("too long a line:", text);
    put(j, NULL, 0, text, (size_t)len);
}

static void put_contents(joiner *j) {
    for (int i = 1; i < j->num; i++)
        put_format(j, " *   %-17s  %s", j->pieces[i].name, j->pieces[i].summary);
}

static void put_banner(joiner *j, const piece *p) {
    static const char rule[] = "=============================================================="
                               "==============================================================";
    int width = MAX_COLUMNS - (int)strlen("/* ==== >>  */") - (int)strlen(p->name);
    put(j, NULL, 0, "", 0);
    put_format(j, "/* ==== >>%s %.*s */", p->name, width, rule);
}

static void put_piece(joiner *j, const piece *p) {
    char name[MAX_NAME];
    for (line l = first_line(p); next_line(&l);) {
        if (includes(&l, '"', name) || starts(&l, "#pragma once\n")) continue;
        if (j->jsmn.text && includes(&l, '<', name) && strcmp(name, "jsmn.h") == 0)
            for (line k = first_line(&j->jsmn); next_line(&k);)
                put(j, &j->jsmn, k.number, k.ptr, k.len);
        else
            put(j, p, l.number, l.ptr, l.len);
    }
}

static void join(joiner *j) {
    char name[MAX_NAME];
    const piece *umbrella = j->pieces, *p = umbrella;
    int marks = 0;
    put_format(j, "/* llmkit.h -- generated from amalgamate/ by `make`: edit the pieces there. */");
    for (line l = first_line(umbrella); next_line(&l);) {
        if (includes(&l, '"', name)) {
            put_banner(j, ++p);
            put_piece(j, p);
        } else if (starts(&l, " * @toc\n")) {
            put_contents(j);
            marks++;
        } else if (starts(&l, "/* @sum ")) {
            put_format(j, "#define LK__SOURCE_SUM \"%016llx\"", (unsigned long long)sum_of(j));
            marks++;
        } else {
            put(j, umbrella, l.number, l.ptr, l.len);
        }
    }
    if (marks != 2) die("@toc and @sum must stand once each in", umbrella->name);
}

static int print_where(const joiner *j, int number) {
    const piece *p = number >= 1 && number <= j->lines ? j->origin[number].from : NULL;
    if (p == &j->jsmn) printf("%s:%d\n", p->name, j->origin[number].line);
    else if (p) printf("%s/%s:%d\n", j->dir, p->name, j->origin[number].line);
    else printf("line %d is of no piece\n", number);
    return p ? 0 : 1;
}

static int check(const joiner *j, const char *path) {
    size_t len, i = 0;
    char *text = read_file(path, &len);
    int number = 1;
    while (i < len && i < j->len && text[i] == j->out[i]) number += text[i++] == '\n';
    bool same = i == len && i == j->len;
    free(text);
    if (same) return 0;
    printf("%s: stale from line %d: ", path, number);
    print_where(j, number);
    return 1;
}

/* Whoever reads path at any moment, or after a crash, sees a whole file. */
static void write_out(const joiner *j, const char *path) {
    char temporary[1024];
    snprintf(temporary, sizeof temporary, "%s.new", path);
    FILE *file = fopen(temporary, "wb");
    if (!file) die("cannot create", temporary);
    bool written = fwrite(j->out, 1, j->len, file) == j->len;
    if (fclose(file) != 0 || !written) die("cannot write", temporary);
    if (rename(temporary, path) != 0) die("cannot replace", path);
}

int main(int argc, char **argv) {
    static joiner j;
    const char *option = argc > 1 && argv[1][0] == '-' ? argv[1] : "";
    bool checks = strcmp(option, "--check") == 0, where = strcmp(option, "--where") == 0;
    bool bundle = strcmp(option, "--bundle") == 0;
    char **arg = argv + 1 + (*option != 0) + (where || bundle);
    if (arg - argv + (where ? 1 : 2) != argc || (*option && !checks && !where && !bundle))
        die("usage:", "[--check | --where N | --bundle JSMN_H] DIR [OUT]");
    j.dir = arg[0];
    if (bundle) {
        snprintf(j.jsmn.name, sizeof j.jsmn.name, "%s", argv[2]);
        j.jsmn.text = read_file(argv[2], &j.jsmn.len);
    }
    load_all(&j);
    if (j.faults) return 1;
    join(&j);
    if (checks) return check(&j, arg[1]);
    if (where) return print_where(&j, atoi(argv[2]));
    write_out(&j, arg[1]);
    return 0;
}
