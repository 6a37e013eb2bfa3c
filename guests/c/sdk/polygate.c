/* The border to the gateway: the canonical ABI of wit/handler.wit, and the connections of this instance. */
#include "polygate.h"

#include <stdlib.h>
#include <string.h>

/* ---- Imports, as the canonical ABI flattens them ---- */

#define IMPORT(name) __attribute__((import_module("polygate:handler/adapter@0.1.0"), import_name(name)))

/* result<_, error-code> in memory. */
typedef struct {
    uint8_t failed, code;
} result;

/* option<string> in memory. */
typedef struct {
    uint8_t present;
    pg_bytes value;
} optional;

IMPORT("send") void host_send(pg_conn, const uint8_t *, size_t, result *);
IMPORT("close") void host_close(pg_conn, result *);
IMPORT("authenticate")
void host_authenticate(pg_conn, const uint8_t *, size_t, const uint8_t *, size_t, const uint8_t *, size_t, int32_t,
                       const uint8_t *, size_t, int32_t, const uint8_t *, size_t, int32_t, const uint8_t *, size_t,
                       result *);
IMPORT("start-timer") void host_start_timer(pg_conn, int32_t, uint32_t, result *);
IMPORT("stop-timer") void host_stop_timer(pg_conn, int32_t, result *);
IMPORT("publish")
void host_publish(pg_conn, const uint8_t *, size_t, int32_t, const uint8_t *, size_t, result *);
IMPORT("raw-publish") void host_raw_publish(const uint8_t *, size_t, int32_t, const uint8_t *, size_t, result *);
IMPORT("subscribe") void host_subscribe(pg_conn, const uint8_t *, size_t, int32_t, result *);
IMPORT("unsubscribe") void host_unsubscribe(pg_conn, const uint8_t *, size_t, result *);
IMPORT("setting") void host_setting(const uint8_t *, size_t, optional *);
IMPORT("now-ms") uint64_t host_now_ms(void);
IMPORT("random") void host_random(uint32_t, pg_bytes *);
IMPORT("log") void host_log(int32_t, const uint8_t *, size_t);

enum { KEEPALIVE = 0, RANDOM_MAX = 1024 };

/* ---- Memory ---- */

static void *resized(void *old, size_t size) {
    void *memory = realloc(old, size);
    if (memory == NULL) {
        __builtin_trap();
    }
    return memory;
}

/* Room for what the gateway hands in. Alignment: malloc's is enough for every type of the interface. */
__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    (void)old_size;
    return size == 0 ? (void *)align : resized(old, size);
}

/* What the gateway handed in; nothing was taken for what is empty. */
static void release(pg_bytes bytes) {
    if (bytes.len > 0) {
        free((void *)bytes.ptr);
    }
}

/* ---- Bytes ---- */

pg_bytes pg_text(const char *text) { return (pg_bytes){(const uint8_t *)text, strlen(text)}; }

bool pg_equal(pg_bytes one, pg_bytes other) {
    return one.len == other.len && (one.len == 0 || memcmp(one.ptr, other.ptr, one.len) == 0);
}

bool pg_starts_with(pg_bytes bytes, pg_bytes prefix) { return pg_equal(pg_upto(bytes, prefix.len), prefix); }

pg_bytes pg_from(pg_bytes bytes, size_t at) {
    if (at >= bytes.len) {
        return (pg_bytes){bytes.ptr, 0};
    }
    return (pg_bytes){bytes.ptr + at, bytes.len - at};
}

pg_bytes pg_upto(pg_bytes bytes, size_t len) { return (pg_bytes){bytes.ptr, len < bytes.len ? len : bytes.len}; }

pg_bytes pg_view(const pg_buffer *buffer) { return (pg_bytes){buffer->ptr, buffer->len}; }

void pg_clear(pg_buffer *buffer) { buffer->len = 0; }

void pg_free(pg_buffer *buffer) {
    free(buffer->ptr);
    *buffer = (pg_buffer){0};
}

void pg_drop(pg_buffer *buffer, size_t len) {
    pg_bytes rest = pg_from(pg_view(buffer), len);
    if (rest.len > 0) {
        memmove(buffer->ptr, rest.ptr, rest.len);
    }
    buffer->len = rest.len;
}

void pg_add(pg_buffer *buffer, pg_bytes bytes) {
    if (bytes.len == 0) {
        return;
    }
    if (bytes.len > buffer->capacity - buffer->len) {
        if (bytes.len > SIZE_MAX / 2 - buffer->len) {
            __builtin_trap();
        }
        size_t needed = buffer->len + bytes.len;
        size_t doubled = buffer->capacity < 32 ? 32 : buffer->capacity * 2;
        buffer->capacity = needed > doubled ? needed : doubled;
        buffer->ptr = resized(buffer->ptr, buffer->capacity);
    }
    memcpy(buffer->ptr + buffer->len, bytes.ptr, bytes.len);
    buffer->len += bytes.len;
}

void pg_add_byte(pg_buffer *buffer, uint8_t byte) { pg_add(buffer, (pg_bytes){&byte, 1}); }

void pg_add_u16(pg_buffer *buffer, uint16_t number) {
    pg_add_byte(buffer, (uint8_t)(number >> 8));
    pg_add_byte(buffer, (uint8_t)number);
}

void pg_add_number(pg_buffer *buffer, int64_t number) { pg_add_decimal(buffer, number, 0); }

void pg_add_decimal(pg_buffer *buffer, int64_t number, unsigned places) {
    uint8_t digits[48];
    size_t at = sizeof digits;
    uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    if (places > 20) {
        places = 20;
    }
    for (unsigned written = 0; rest > 0 || written <= places; written++) {
        if (written == places && places > 0) {
            digits[--at] = '.';
        }
        digits[--at] = (uint8_t)('0' + rest % 10);
        rest /= 10;
    }
    if (number < 0) {
        digits[--at] = '-';
    }
    pg_add(buffer, (pg_bytes){digits + at, sizeof digits - at});
}

void pg_add_character(pg_buffer *text, uint32_t number) {
    if (number < 0x80) {
        pg_add_byte(text, (uint8_t)number);
        return;
    }
    if (number < 0x800) {
        pg_add_byte(text, (uint8_t)(0xc0 | number >> 6));
    } else {
        if (number < 0x10000) {
            pg_add_byte(text, (uint8_t)(0xe0 | number >> 12));
        } else {
            pg_add_byte(text, (uint8_t)(0xf0 | number >> 18));
            pg_add_byte(text, (uint8_t)(0x80 | (number >> 12 & 0x3f)));
        }
        pg_add_byte(text, (uint8_t)(0x80 | (number >> 6 & 0x3f)));
    }
    pg_add_byte(text, (uint8_t)(0x80 | (number & 0x3f)));
}

void pg_add_hex(pg_buffer *buffer, pg_bytes bytes) {
    static const char digits[] = "0123456789abcdef";
    for (size_t at = 0; at < bytes.len; at++) {
        pg_add_byte(buffer, (uint8_t)digits[bytes.ptr[at] >> 4]);
        pg_add_byte(buffer, (uint8_t)digits[bytes.ptr[at] & 15]);
    }
}

size_t pg_character(pg_bytes text) {
    if (text.len == 0) {
        return 0;
    }
    uint8_t first = text.ptr[0];
    if (first < 0x80) {
        return 1;
    }
    size_t len = first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 : first >= 0xf0 && first < 0xf5 ? 4 : 0;
    if (len == 0 || text.len < len) {
        return 0;
    }
    for (size_t at = 1; at < len; at++) {
        if ((text.ptr[at] & 0xc0) != 0x80) {
            return 0;
        }
    }
    /* Written longer than needed, a half of a surrogate pair, or beyond the last character. */
    uint8_t second = text.ptr[1];
    bool bad = (first == 0xe0 && second < 0xa0) || (first == 0xed && second >= 0xa0) || (first == 0xf0 && second < 0x90) ||
               (first == 0xf4 && second >= 0x90);
    return bad ? 0 : len;
}

static bool is_utf8(pg_bytes text) {
    while (text.len > 0) {
        size_t len = pg_character(text);
        if (len == 0) {
            return false;
        }
        text = pg_from(text, len);
    }
    return true;
}

/* ---- The adapter ---- */

/* The gateway ends a handler that hands it text which is none; here the handler is told. */
#define EXPECT_TEXT(bytes) \
    if (!is_utf8(bytes)) { \
        return PG_BAD_PARAMS; \
    }

static pg_error outcome(result done) { return done.failed ? (pg_error)(PG_UNKNOWN + done.code) : PG_OK; }

pg_error pg_send(pg_conn conn, pg_bytes bytes) {
    result done;
    host_send(conn, bytes.ptr, bytes.len, &done);
    return outcome(done);
}

pg_error pg_close(pg_conn conn) {
    result done;
    host_close(conn, &done);
    return outcome(done);
}

pg_error pg_authenticate(pg_conn conn, const pg_client *client) {
    EXPECT_TEXT(client->proto_name)
    EXPECT_TEXT(client->proto_ver)
    EXPECT_TEXT(client->client_id)
    EXPECT_TEXT(client->username)
    EXPECT_TEXT(client->password)
    result done;
    host_authenticate(conn, client->proto_name.ptr, client->proto_name.len, client->proto_ver.ptr, client->proto_ver.len,
                      client->client_id.ptr, client->client_id.len, client->username.ptr != NULL, client->username.ptr,
                      client->username.len, false, NULL, 0, client->password.ptr != NULL, client->password.ptr,
                      client->password.len, &done);
    return outcome(done);
}

pg_error pg_start_keepalive(pg_conn conn, uint32_t interval_ms) {
    result done;
    host_start_timer(conn, KEEPALIVE, interval_ms, &done);
    return outcome(done);
}

pg_error pg_stop_keepalive(pg_conn conn) {
    result done;
    host_stop_timer(conn, KEEPALIVE, &done);
    return outcome(done);
}

pg_error pg_publish(pg_conn conn, pg_bytes topic, pg_qos qos, pg_bytes payload) {
    EXPECT_TEXT(topic)
    result done;
    host_publish(conn, topic.ptr, topic.len, (int32_t)qos, payload.ptr, payload.len, &done);
    return outcome(done);
}

pg_error pg_raw_publish(pg_bytes topic, pg_qos qos, pg_bytes payload) {
    EXPECT_TEXT(topic)
    result done;
    host_raw_publish(topic.ptr, topic.len, (int32_t)qos, payload.ptr, payload.len, &done);
    return outcome(done);
}

pg_error pg_subscribe(pg_conn conn, pg_bytes filter, pg_qos qos) {
    EXPECT_TEXT(filter)
    result done;
    host_subscribe(conn, filter.ptr, filter.len, (int32_t)qos, &done);
    return outcome(done);
}

pg_error pg_unsubscribe(pg_conn conn, pg_bytes filter) {
    EXPECT_TEXT(filter)
    result done;
    host_unsubscribe(conn, filter.ptr, filter.len, &done);
    return outcome(done);
}

bool pg_setting(pg_bytes name, pg_buffer *value) {
    if (!is_utf8(name)) {
        return false;
    }
    optional found;
    host_setting(name.ptr, name.len, &found);
    if (!found.present) {
        return false;
    }
    pg_clear(value);
    pg_add(value, found.value);
    release(found.value);
    return true;
}

uint64_t pg_now_ms(void) { return host_now_ms(); }

void pg_random(pg_buffer *buffer, uint32_t len) {
    while (len > 0) {
        pg_bytes drawn;
        host_random(len < RANDOM_MAX ? len : RANDOM_MAX, &drawn);
        if (drawn.len == 0 || drawn.len > len) {
            __builtin_trap();
        }
        pg_add(buffer, drawn);
        len -= (uint32_t)drawn.len;
        release(drawn);
    }
}

void pg_log(pg_level level, pg_bytes text) {
    if (is_utf8(text)) {
        host_log((int32_t)level, text.ptr, text.len);
        return;
    }
    pg_buffer readable = {0};
    pg_add(&readable, PG("(not UTF-8) "));
    for (size_t at = 0; at < text.len; at++) {
        pg_add_byte(&readable, text.ptr[at] < 0x80 ? text.ptr[at] : '?');
    }
    host_log((int32_t)level, readable.ptr, readable.len);
    pg_free(&readable);
}

const char *pg_error_name(pg_error error) {
    switch (error) {
    case PG_OK: return "ok";
    case PG_UNKNOWN: return "unknown";
    case PG_CONN_GONE: return "conn-gone";
    case PG_BAD_PARAMS: return "bad-params";
    case PG_PERMISSION_DENIED: return "permission-denied";
    case PG_NOT_AUTHENTICATED: return "not-authenticated";
    case PG_OVERLOADED: return "overloaded";
    case PG_TIMEOUT: return "timeout";
    }
    return "unknown";
}

/* ---- The connections of this instance, sorted by the gateway's number, which only counts up ---- */

typedef struct {
    pg_conn conn;
    void *state;
} connection;

static connection *connections;
static size_t connections_len, connections_capacity;

/* Where this connection is, or would be. */
static size_t place(pg_conn conn) {
    size_t from = 0, to = connections_len;
    while (from < to) {
        size_t middle = from + (to - from) / 2;
        if (connections[middle].conn < conn) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    return from;
}

/* The connection's own structure; a null pointer, and a line in the log, when there is none. */
static void *state_of(pg_conn conn) {
    size_t at = place(conn);
    if (at < connections_len && connections[at].conn == conn) {
        return connections[at].state;
    }
    pg_log(PG_ERROR, PG("an event for a connection that was never announced, or has ended"));
    return NULL;
}

static void *opened(pg_conn conn) {
    size_t at = place(conn);
    if (at < connections_len && connections[at].conn == conn) {
        pg_log(PG_ERROR, PG("a connection was announced twice"));
        return NULL;
    }
    if (connections_len == connections_capacity) {
        connections_capacity = connections_capacity == 0 ? 1 : connections_capacity * 2;
        connections = resized(connections, connections_capacity * sizeof *connections);
    }
    size_t size = pg_the_handler.state_size > 0 ? pg_the_handler.state_size : 1;
    void *state = memset(resized(NULL, size), 0, size);
    memmove(connections + at + 1, connections + at, (connections_len - at) * sizeof *connections);
    connections[at] = (connection){conn, state};
    connections_len++;
    return state;
}

static void forgotten(pg_conn conn) {
    size_t at = place(conn);
    if (at < connections_len && connections[at].conn == conn) {
        free(connections[at].state);
        connections_len--;
        memmove(connections + at, connections + at + 1, (connections_len - at) * sizeof *connections);
    }
}

static void release_info(const pg_conn_info *info) {
    release(info->peer.host);
    release(info->local.host);
    if (info->has_certificate) {
        release(info->certificate_cn);
        release(info->certificate_dn);
    }
}

/* ---- Exports ---- */

#define EXPORT(name) __attribute__((export_name("polygate:handler/handler@0.1.0#" name)))

EXPORT("on-socket-created")
void export_on_socket_created(pg_conn conn, int32_t kind, const uint8_t *peer, size_t peer_len, int32_t peer_port,
                              const uint8_t *local, size_t local_len, int32_t local_port, int32_t has_certificate,
                              const uint8_t *cn, size_t cn_len, const uint8_t *dn, size_t dn_len) {
    pg_conn_info info = {
        .kind = (uint8_t)kind,
        .peer = {{peer, peer_len}, (uint16_t)peer_port},
        .local = {{local, local_len}, (uint16_t)local_port},
        .has_certificate = (uint8_t)has_certificate,
    };
    if (has_certificate) {
        info.certificate_cn = (pg_bytes){cn, cn_len};
        info.certificate_dn = (pg_bytes){dn, dn_len};
    }
    void *state = opened(conn);
    if (state != NULL && pg_the_handler.on_created != NULL) {
        pg_the_handler.on_created(conn, state, &info);
    }
    release_info(&info);
}

EXPORT("on-received-bytes")
void export_on_received_bytes(pg_conn conn, const uint8_t *ptr, size_t len) {
    pg_bytes bytes = {ptr, len};
    void *state = state_of(conn);
    if (state != NULL && pg_the_handler.on_bytes != NULL) {
        pg_the_handler.on_bytes(conn, state, bytes);
    }
    release(bytes);
}

EXPORT("on-timer-timeout")
void export_on_timer_timeout(pg_conn conn, int32_t timer) {
    void *state = state_of(conn);
    if (state != NULL && timer == KEEPALIVE && pg_the_handler.on_keepalive_timeout != NULL) {
        pg_the_handler.on_keepalive_timeout(conn, state);
    }
}

/* The canonical ABI's layout of a message is this compiler's. */
_Static_assert(sizeof(pg_message) == 56 && offsetof(pg_message, qos) == 32 && offsetof(pg_message, sender) == 36 &&
                   offsetof(pg_message, timestamp_ms) == 48,
               "wit/handler.wit: record message");

EXPORT("on-received-messages")
void export_on_received_messages(pg_conn conn, pg_message *messages, size_t len) {
    void *state = state_of(conn);
    for (size_t at = 0; at < len; at++) {
        pg_message *message = &messages[at];
        if (state != NULL && pg_the_handler.on_message != NULL) {
            pg_the_handler.on_message(conn, state, message);
        }
        release(message->node);
        release(message->id);
        release(message->topic);
        release(message->payload);
        release(message->sender);
    }
    if (len > 0) {
        free(messages);
    }
}

EXPORT("on-socket-closed")
void export_on_socket_closed(pg_conn conn, int32_t reason, const uint8_t *ptr, size_t len) {
    pg_bytes words = reason == PG_CLOSED_BY_ERROR ? (pg_bytes){ptr, len} : (pg_bytes){0};
    void *state = state_of(conn);
    if (state != NULL && pg_the_handler.on_closed != NULL) {
        pg_the_handler.on_closed(conn, state, (pg_reason)reason, words);
    }
    forgotten(conn);
    release(words);
}

/* ---- Going on in a new version ---- */

/* option<state>, and what it was made from until the next call. */
static struct {
    uint8_t present;
    uint32_t format;
    pg_bytes bytes;
} snapshot;
static pg_buffer snapshot_bytes;
_Static_assert(sizeof snapshot == 16, "wit/handler.wit: option<state>");

void *pg_snapshot(pg_conn conn) {
    void *state = state_of(conn);
    pg_clear(&snapshot_bytes);
    snapshot.present = state != NULL && pg_the_handler.snapshot != NULL &&
                       pg_the_handler.snapshot(conn, state, &snapshot.format, &snapshot_bytes);
    snapshot.bytes = pg_view(&snapshot_bytes);
    return &snapshot;
}

/* The arguments of restore: seventeen values when flattened, which is one more than the ABI passes one by one. */
typedef struct {
    pg_conn conn;
    pg_conn_info info;
    uint8_t present;
    uint32_t format;
    pg_bytes bytes;
} restoring;
_Static_assert(sizeof(pg_conn_info) == 48 && sizeof(restoring) == 72 && offsetof(restoring, format) == 60,
               "wit/handler.wit: restore");

/* result<_, string>. */
static struct {
    uint8_t failed;
    pg_bytes words;
} restored;

void *pg_restore(void *arguments) {
    restoring *given = arguments;
    pg_bytes refusal = PG("this connection is here already");
    void *state = opened(given->conn);
    if (state != NULL) {
        refusal = PG("this handler cannot restore connections");
        if (pg_the_handler.restore != NULL) {
            refusal = pg_the_handler.restore(given->conn, state, &given->info, given->format,
                                             given->present ? &given->bytes : NULL);
        }
        if (refusal.len > 0) {
            forgotten(given->conn);
        }
    }
    release_info(&given->info);
    if (given->present) {
        release(given->bytes);
    }
    free(given);
    restored.failed = refusal.len > 0;
    restored.words = is_utf8(refusal) ? refusal : PG("refused, in words that are not UTF-8");
    return &restored;
}
