/* bench_memory.c -- what connections and calls cost, by the slope of resident memory
 *
 * The same process at two sizes; the difference, divided.  Kernel memory is apart: it is the same
 * for every program. */
#include "load.h"

typedef struct memory_setup {
    const char *url;
    uint32_t    conns;
    bool        calls; /* each with a call that is not answered */
} memory_setup;

static double resident_kb(void) {
    char line[256];
    double kb = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file)) sscanf(line, "VmRSS: %lf", &kb);
    if (file) fclose(file);
    return kb;
}

static void ignore(void *user, const llmkit_reply *reply) {
    (void)user, (void)reply;
}

static void fill(const void *arg, lk_load *load) {
    const memory_setup *s = arg;
    llmkit_error error;
    llmkit_tls *tls = llmkit_tls_create(&(llmkit_tls_desc){ .ca_file = "build/certs/bundle.pem" },
                                        &error);
    llmkit_client *client = llmkit_client_create(&(llmkit_client_desc){
        .tls = tls, .providers = &(llmkit_provider_desc){ .base_url = s->url },
        .num_providers = 1 }, &error);
    if (!client) lk_die(error.message);
    llmkit_loop *loop = llmkit_client_loop(client);
    if (s->calls)
        for (uint32_t i = 0; i < s->conns; i++)
            llmkit_submit_whole(client, &(llmkit_request){ .model = "m", .prompt = "Wait." },
                                ignore, NULL, NULL, &error);
    else
        llmkit_client_warm(client, NULL, s->conns, NULL);
    for (double until = lk_wall_s() + 15; lk_wall_s() < until;) {
        llmkit_loop_poll(loop, 10);
        llmkit_client_stats st = llmkit_client_read(client);
        if (st.open >= s->conns && (s->calls ? st.connects : st.idle) >= s->conns) break;
    }
    for (int i = 0; i < 20; i++) llmkit_loop_poll(loop, 10);
    llmkit_client_stats st = llmkit_client_read(client);
    load->requests = st.open;
    load->extra = resident_kb();
}

/* Kilobytes for each of the second half. */
static double slope(const char *url, uint32_t few, uint32_t many, bool calls, pid_t server) {
    double kb[2], conns[2];
    for (int i = 0; i < 2; i++) {
        memory_setup s = { url, i ? many : few, calls };
        lk_load load = lk_contend(fill, &s, server);
        if (load.requests < s.conns) lk_die("connections are missing");
        kb[i] = load.extra;
        conns[i] = load.requests;
    }
    return (kb[1] - kb[0]) / (conns[1] - conns[0]);
}

/* Accepts and never answers. */
static pid_t start_silence(int *port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof at;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&at, len) || listen(fd, 4096) ||
        getsockname(fd, (struct sockaddr *)&at, &len))
        lk_die("no socket");
    *port = ntohs(at.sin_port);
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGTERM, SIG_DFL);
        for (;;)
            if (accept(fd, NULL, NULL) < 0) usleep(1000);
    }
    close(fd);
    return pid;
}

int main(void) {
    char plain[64], tls[64], silent[64];
    int port;
    lk_nginx nginx = lk_nginx_start();
    pid_t silence = start_silence(&port);
    snprintf(plain, sizeof plain, "http://127.0.0.1:%d/v1", nginx.plain);
    snprintf(tls, sizeof tls, "https://localhost:%d/v1", nginx.tls);
    snprintf(silent, sizeof silent, "http://127.0.0.1:%d/v1", port);
    printf("memory: by the slope of resident memory, kernel apart\n");
    lk_figure("memory.idle_plain_kb", slope(plain, 1000, 5000, false, nginx.pid), "KB", "<=", 4,
              NULL);
    lk_figure("memory.idle_tls_kb", slope(tls, 200, 1000, false, nginx.pid), "KB", "<=", 24, NULL);
    lk_figure("memory.call_in_flight_kb", slope(silent, 1000, 5000, true, silence), "KB", NULL, 0,
              "connection included");
    lk_stop(silence);
    lk_stop(nginx.pid);
    return 0;
}
