/* api/server.h -- an HTTP/1.1 server on the loop */
#pragma once

/* Belongs to its loop's thread.  Everything is bounded: a slow or hostile peer costs at most the
 * sizes below, and is closed when it has made no progress for the times below. */
typedef struct llmkit_server   llmkit_server;
typedef struct llmkit_exchange llmkit_exchange; /* one HTTP request being answered */

typedef struct llmkit_server_desc {
    uint32_t     _guard0;
    llmkit_env   env;
    llmkit_loop *loop;      /* required */
    llmkit_tls  *tls;       /* set: TLS, with its certificate */
    const char  *listen;    /* "127.0.0.1:8080", "[::1]:0", "unix:/path"; default "127.0.0.1:0" */
    uint32_t     backlog;         /* default 4096 */
    uint32_t     max_connections; /* default 16384; over it, new ones wait in the backlog */
    uint32_t     max_head_bytes;  /* default and most: LLMKIT_MAX_HEAD_BYTES */
    uint32_t     max_body_bytes;  /* of a request; default 16 MiB; over it: 413 */
    uint32_t     max_unsent_bytes; /* of a reply, waiting for a slow peer; default 1 MiB; a whole
                                      reply in one piece may be larger */
    uint32_t     head_ms;         /* TLS handshake; from first byte to whole head; default 10000 */
    uint32_t     body_ms;         /* between two bytes of a request body; default 30000 */
    uint32_t     send_ms;         /* a peer that takes nothing of its reply; default 60000 */
    uint32_t     keep_alive_ms;   /* default 75000 */
    /* A request is there, whole.  Answer it now or later on this thread.  false: 404. */
    bool       (*handle)(void *user, llmkit_exchange *exchange);
    void        *user;
    uint32_t     _guard1;
} llmkit_server_desc;

typedef struct llmkit_server_stats {
    uint64_t requests, connections;
    uint64_t refused;         /* bad requests, answered by the server itself */
    uint32_t open, in_flight; /* now */
} llmkit_server_stats;

LLMKIT_API llmkit_server *llmkit_server_create(const llmkit_server_desc *desc, llmkit_error *error);
/* Stops listening and closes idle connections; exchanges that are being answered go on, each the
 * last of its connection. */
LLMKIT_API void llmkit_server_drain(llmkit_server *server);
/* Closes everything; each exchange still open is told by its closed callback. */
LLMKIT_API void llmkit_server_destroy(llmkit_server *server);
LLMKIT_API uint16_t llmkit_server_port(const llmkit_server *server); /* with listen "127.0.0.1:0" */
LLMKIT_API llmkit_server_stats llmkit_server_read(const llmkit_server *server);

/* Views of the request: valid until the exchange ends. */
LLMKIT_API llmkit_str llmkit_exchange_method(const llmkit_exchange *exchange);
LLMKIT_API llmkit_str llmkit_exchange_path(const llmkit_exchange *exchange);  /* before any '?' */
LLMKIT_API llmkit_str llmkit_exchange_query(const llmkit_exchange *exchange); /* after it */
LLMKIT_API llmkit_str llmkit_exchange_body(const llmkit_exchange *exchange);
/* The field's value, {NULL, 0} where there is none; name in any case. */
LLMKIT_API llmkit_str llmkit_exchange_header(const llmkit_exchange *exchange, const char *name);

/* The exchange is the program's until it calls _reply, _end or _abort.  If the peer goes first (one
 * that closes its sending side counts as gone), or the server is destroyed, closed is called, once,
 * and the exchange is gone with its return; a call inside it does nothing.  Without a closed
 * callback the handle stays valid, and calls on it do nothing, until it is ended or the server is
 * destroyed. */
LLMKIT_API void llmkit_exchange_closed(llmkit_exchange *exchange, void (*closed)(void *user),
                                       void *user);
/* A field of the reply, before _reply or _begin.  Content-Length, Transfer-Encoding and Connection
 * are the server's own. */
LLMKIT_API llmkit_err llmkit_exchange_set(llmkit_exchange *exchange, const char *name,
                                          const char *value);
/* All at once; ends the exchange. */
LLMKIT_API void llmkit_exchange_reply(llmkit_exchange *exchange, int status,
                                      const char *content_type, llmkit_str body);
/* Or piece by piece.  _write: false if the piece would go over max_unsent_bytes and was not taken
 * (one alone may); writable is called when there is room again.  E_STALE: the peer is gone. */
LLMKIT_API llmkit_err llmkit_exchange_begin(llmkit_exchange *exchange, int status,
                                            const char *content_type);
LLMKIT_API bool llmkit_exchange_write(llmkit_exchange *exchange, llmkit_str piece);
LLMKIT_API void llmkit_exchange_writable(llmkit_exchange *exchange, void (*writable)(void *user),
                                         void *user);
LLMKIT_API void llmkit_exchange_end(llmkit_exchange *exchange);
/* Ends it by cutting the connection: what a crash looks like to the peer. */
LLMKIT_API void llmkit_exchange_abort(llmkit_exchange *exchange);
