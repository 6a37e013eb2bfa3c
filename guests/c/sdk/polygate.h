/* What a polygate handler written in C stands on: the interface of wit/handler.wit in C's words.
 *
 * A handler is a few functions and a structure for what it keeps of one connection:
 *
 *     #include "polygate.h"
 *
 *     struct device { unsigned chunks; };
 *
 *     static void on_bytes(pg_conn conn, void *state, pg_bytes bytes) {
 *         struct device *device = state;
 *         device->chunks++;
 *         pg_send(conn, bytes);
 *     }
 *
 *     PG_HANDLER(struct device, .on_bytes = on_bytes)
 *
 * and one command makes what the gateway loads:
 *
 *     clang --target=wasm32-wasi -mexec-model=reactor -Os handler.c polygate.c -o handler.wasm
 *
 * There are no files, sockets, clocks or threads: these functions are all there is. What is printed goes nowhere;
 * use pg_log. A handler that runs out of memory is ended by a trap, so no function here fails for that reason. */
#ifndef POLYGATE_H
#define POLYGATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One connection: the gateway's number for it, never used twice. */
typedef uint64_t pg_conn;

/* Bytes or text somewhere else, without an ending zero. Where text is asked for it must be UTF-8. */
typedef struct {
    const uint8_t *ptr;
    size_t len;
} pg_bytes;

/* A string literal as bytes. */
#define PG(literal) ((pg_bytes){(const uint8_t *)("" literal), sizeof(literal) - 1})

pg_bytes pg_text(const char *text);              /* text that ends with a zero, for example a variable's */
bool pg_equal(pg_bytes one, pg_bytes other);
bool pg_starts_with(pg_bytes bytes, pg_bytes prefix);
pg_bytes pg_from(pg_bytes bytes, size_t at);     /* without its first bytes; empty when there are no more */
pg_bytes pg_upto(pg_bytes bytes, size_t len);    /* its first bytes, or all when there are fewer */
size_t pg_character(pg_bytes text);              /* how many bytes its first character of UTF-8 has; 0: it is none */

/* ---- What may be asked of the gateway ---- */

/* PG_OK, or why the gateway did not do what was asked; the words of error-code. */
typedef enum {
    PG_OK,
    PG_UNKNOWN,
    PG_CONN_GONE,
    PG_BAD_PARAMS,
    PG_PERMISSION_DENIED,
    PG_NOT_AUTHENTICATED,
    PG_OVERLOADED,
    PG_TIMEOUT,
} pg_error;

typedef enum { PG_AT_MOST_ONCE, PG_AT_LEAST_ONCE, PG_EXACTLY_ONCE } pg_qos;
typedef enum { PG_TRACE, PG_DEBUG, PG_INFO, PG_WARN, PG_ERROR } pg_level;

/* Who the peer says it is. Names that are not set are empty; username and password with a null pointer are absent. */
typedef struct {
    pg_bytes proto_name, proto_ver, client_id, username, password;
} pg_client;

pg_error pg_send(pg_conn conn, pg_bytes bytes);
pg_error pg_close(pg_conn conn);
pg_error pg_authenticate(pg_conn conn, const pg_client *client);
pg_error pg_start_keepalive(pg_conn conn, uint32_t interval_ms); /* runs out after 1.5 times as long without a byte */
pg_error pg_stop_keepalive(pg_conn conn);
pg_error pg_publish(pg_conn conn, pg_bytes topic, pg_qos qos, pg_bytes payload);
pg_error pg_raw_publish(pg_bytes topic, pg_qos qos, pg_bytes payload);
pg_error pg_subscribe(pg_conn conn, pg_bytes filter, pg_qos qos);
pg_error pg_unsubscribe(pg_conn conn, pg_bytes filter);
uint64_t pg_now_ms(void); /* since the Unix epoch */
void pg_log(pg_level level, pg_bytes text);

const char *pg_error_name(pg_error error); /* "permission-denied" */

/* ---- Bytes that grow ---- */

/* Begins as {0}; pg_free gives its memory back. */
typedef struct {
    uint8_t *ptr;
    size_t len, capacity;
} pg_buffer;

pg_bytes pg_view(const pg_buffer *buffer); /* until the buffer changes */
void pg_clear(pg_buffer *buffer);          /* its memory stays for what comes next */
void pg_free(pg_buffer *buffer);
void pg_drop(pg_buffer *buffer, size_t len); /* its first bytes, at most all */

void pg_add(pg_buffer *buffer, pg_bytes bytes);
void pg_add_byte(pg_buffer *buffer, uint8_t byte);
void pg_add_u16(pg_buffer *buffer, uint16_t number);  /* two bytes, the high one first */
void pg_add_number(pg_buffer *buffer, int64_t number);                  /* in decimal digits */
void pg_add_decimal(pg_buffer *buffer, int64_t number, unsigned places); /* divided by ten to the power of places */
void pg_add_character(pg_buffer *buffer, uint32_t number);               /* a Unicode character as UTF-8 */
void pg_add_hex(pg_buffer *buffer, pg_bytes bytes);                     /* two digits a byte */

/* Reads a setting of the handler from the configuration; false when there is none. */
bool pg_setting(pg_bytes name, pg_buffer *value);
/* Adds bytes of the gateway's secure generator. */
void pg_random(pg_buffer *buffer, uint32_t len);

/* ---- What a handler implements ---- */

typedef enum { PG_TCP, PG_TLS, PG_UDP, PG_DTLS, PG_WEBSOCKET } pg_socket_kind;

typedef struct {
    pg_bytes host;
    uint16_t port;
} pg_address;

/* A new connection. The certificate's names are empty without has_certificate. */
typedef struct {
    uint8_t kind; /* a pg_socket_kind */
    pg_address peer, local;
    uint8_t has_certificate;
    pg_bytes certificate_cn, certificate_dn;
} pg_conn_info;

/* A message of one of the connection's subscriptions. */
typedef struct {
    pg_bytes node, id, topic, payload;
    uint8_t qos; /* a pg_qos */
    pg_bytes sender;
    uint64_t timestamp_ms;
} pg_message;

typedef enum {
    PG_CLOSED_BY_PEER,
    PG_CLOSED_BY_HANDLER,
    PG_KEEPALIVE_TIMEOUT,
    PG_IDLE_TIMEOUT,
    PG_REPLACED,
    PG_KICKED,
    PG_EXPIRED,
    PG_CLOSED_BY_HOST,
    PG_CLOSED_BY_ERROR, /* in words */
} pg_reason;

/* The events of a connection, one at a time. Functions that are not set do nothing. What they are handed is theirs until
 * they return. `state` is the connection's own structure: zero at first, freed after on_closed. */
typedef struct {
    size_t state_size;
    void (*on_created)(pg_conn conn, void *state, const pg_conn_info *info);
    void (*on_bytes)(pg_conn conn, void *state, pg_bytes bytes);
    void (*on_keepalive_timeout)(pg_conn conn, void *state); /* then the connection is closed */
    void (*on_message)(pg_conn conn, void *state, const pg_message *message);
    void (*on_closed)(pg_conn conn, void *state, pg_reason reason, pg_bytes words);
    /* Both or neither, and only with PG_MIGRATING_HANDLER: a connection goes on in a new version of the handler. */
    bool (*snapshot)(pg_conn conn, void *state, uint32_t *format, pg_buffer *bytes); /* false: nothing to carry over */
    /* Instead of on_created, with what the old version's snapshot gave, or a null pointer for nothing. Empty on success,
     * else why this connection must stay with the old version. */
    pg_bytes (*restore)(pg_conn conn, void *state, const pg_conn_info *info, uint32_t format, const pg_bytes *bytes);
} pg_handler;

/* Makes functions a handler; once in a program. */
#define PG_HANDLER(type, ...) \
    const pg_handler pg_the_handler = {.state_size = sizeof(type), __VA_ARGS__};

/* The same for one whose connections outlive a change of version: it sets snapshot and restore too. */
#define PG_MIGRATING_HANDLER(type, ...) \
    PG_HANDLER(type, __VA_ARGS__) \
    __attribute__((export_name("polygate:handler/migrate@0.1.0#snapshot"))) \
    void *pg_export_snapshot(pg_conn conn) { return pg_snapshot(conn); } \
    __attribute__((export_name("polygate:handler/migrate@0.1.0#restore"))) \
    void *pg_export_restore(void *arguments) { return pg_restore(arguments); }

/* The rest is for these two macros. */
extern const pg_handler pg_the_handler;
void *pg_snapshot(pg_conn conn);
void *pg_restore(void *arguments);

#endif
