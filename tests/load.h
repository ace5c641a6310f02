/* load.h -- for benchmarks that put a server under load: nginx beside us, contenders in processes
 *
 * Where the machine has two cores or more, the server gets one and the contender another, so that
 * what each of them costs can be told apart. */
#pragma once

#define _GNU_SOURCE 1 /* sched_setaffinity */
#include "bench.h"

#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

typedef struct lk_load {
    double requests, errors;
    double wall_s, cpu_s, user_s; /* of the contender */
    double server_s;              /* CPU time of the server meanwhile */
    double rss_kb;                /* peak of the contender */
    double extra;                 /* whatever it measured besides */
} lk_load;

LK_BENCH void lk_pin(int core) {
#ifdef __linux__
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core % (int)sysconf(_SC_NPROCESSORS_ONLN), &set);
    sched_setaffinity(0, sizeof set, &set);
#else
    (void)core;
#endif
}

LK_BENCH void lk_die(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

/* A port of loopback that nobody listens on. */
LK_BENCH int lk_free_port(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof at;
    if (bind(fd, (struct sockaddr *)&at, len) || getsockname(fd, (struct sockaddr *)&at, &len))
        lk_die("no port");
    close(fd);
    return ntohs(at.sin_port);
}

LK_BENCH void lk_wait_for_port(int port) {
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    for (int i = 0; i < 500; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        bool up = connect(fd, (struct sockaddr *)&at, sizeof at) == 0;
        close(fd);
        if (up) return;
        usleep(10000);
    }
    lk_die("a server did not come up");
}

/* Starts argv on a core; its output goes to a file. */
LK_BENCH pid_t lk_spawn(char *const *argv, int core, const char *log) {
    pid_t pid = fork();
    if (pid) return pid;
    lk_pin(core);
    int fd = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    dup2(fd, 1);
    dup2(fd, 2);
    execvp(argv[0], argv);
    _exit(127);
}

LK_BENCH void lk_stop(pid_t pid) {
    kill(pid, SIGTERM);
    waitpid(pid, NULL, 0);
}

/* CPU seconds that a process has used; 0 where that cannot be read. */
LK_BENCH double lk_cpu_of(pid_t pid) {
    char path[64], text[1024];
    unsigned long user = 0, sys = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = '\0';
    const char *after = strrchr(text, ')');
    if (!after || sscanf(after, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
                         &sys) != 2)
        return 0;
    return (double)(user + sys) / (double)sysconf(_SC_CLK_TCK);
}

/* nginx with one worker and no master, so that its process is the one that works: a constant chat
 * completion on a plain and on a TLS port. */
typedef struct lk_nginx {
    pid_t pid;
    int   plain, tls;
} lk_nginx;

#define LK_COMPLETION                                                                              \
    "{\"id\":\"chatcmpl-0123456789abcdefghijklmnopqrs\",\"object\":\"chat.completion\","           \
    "\"created\":1700000000,\"model\":\"gpt-4o-mini-2024-07-18\",\"choices\":[{\"index\":0,"       \
    "\"message\":{\"role\":\"assistant\",\"content\":\"A constant answer, as long as answers to "  \
    "small questions are; it is here to be read, not to be believed. It ends in a moment, and "    \
    "then another one like it begins.\",\"refusal\":null},\"logprobs\":null,"                      \
    "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":19,\"completion_tokens\":35,"       \
    "\"total_tokens\":54,\"prompt_tokens_details\":{\"cached_tokens\":0},"                         \
    "\"completion_tokens_details\":{\"reasoning_tokens\":0}},\"system_fingerprint\":\"fp_0\"}"

LK_BENCH lk_nginx lk_nginx_start(void) {
    lk_nginx n = { .plain = lk_free_port(), .tls = lk_free_port() };
    char here[2048], conf[2048 + 64], command[3 * 2048];
    if (!getcwd(here, sizeof here - 64)) lk_die("no working directory");
    if (system("sh tests/make_certs build/certs >/dev/null && mkdir -p build/bench/nginx"))
        lk_die("no certificates: tests/make_certs failed");
    snprintf(conf, sizeof conf, "%s/build/bench/nginx.conf", here);
    FILE *file = fopen(conf, "w");
    if (!file) lk_die("build/bench cannot be written");
    fprintf(file,
            "worker_processes 1; daemon off; master_process off; pid %s/build/bench/nginx/pid;\n"
            "error_log %s/build/bench/nginx/error.log warn;\n"
            "worker_rlimit_nofile 16384; events { worker_connections 15000; }\n"
            "http { access_log off; keepalive_requests 100000000; keepalive_timeout 75s;\n"
            "client_body_temp_path %s/build/bench/nginx; proxy_temp_path %s/build/bench/nginx;\n"
            "fastcgi_temp_path %s/build/bench/nginx; uwsgi_temp_path %s/build/bench/nginx;\n"
            "scgi_temp_path %s/build/bench/nginx;\n"
            "server { listen 127.0.0.1:%d backlog=8192; listen 127.0.0.1:%d ssl backlog=8192;\n"
            "ssl_certificate %s/build/certs/ec.pem; ssl_certificate_key %s/build/certs/ec.key;\n"
            "ssl_protocols TLSv1.2; ssl_session_cache shared:S:8m; default_type application/json;\n"
            "location = /v1/chat/completions { client_body_buffer_size 64k; return 200 '%s'; } }\n"
            "}\n",
            here, here, here, here, here, here, here, n.plain, n.tls, here, here, LK_COMPLETION);
    fclose(file);
    snprintf(command, sizeof command, "PATH=$PATH:/usr/sbin:/usr/local/sbin exec nginx -c %s -e "
             "%s/build/bench/nginx/error.log", conf, here);
    char *argv[] = { "sh", "-c", command, NULL };
    n.pid = lk_spawn(argv, 1, "build/bench/nginx/out");
    lk_wait_for_port(n.plain);
    return n;
}

/* Runs a contender in a process of its own, on a core of its own, and reads what it measured. */
LK_BENCH lk_load lk_contend(void (*run)(const void *arg, lk_load *load), const void *arg,
                            pid_t server) {
    lk_load load = { 0 };
    int fds[2];
    if (pipe(fds)) lk_die("no pipe");
    double before = lk_cpu_of(server);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        lk_pin(0);
        run(arg, &load);
        struct rusage u;
        getrusage(RUSAGE_SELF, &u);
        load.rss_kb = (double)u.ru_maxrss;
        if (write(fds[1], &load, sizeof load) != (ssize_t)sizeof load) _exit(1);
        _exit(0);
    }
    close(fds[1]);
    ssize_t n = read(fds[0], &load, sizeof load);
    close(fds[0]);
    waitpid(pid, NULL, 0);
    if (n != (ssize_t)sizeof load) lk_die("a contender failed");
    load.server_s = lk_cpu_of(server) - before;
    return load;
}
