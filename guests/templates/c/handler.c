/* Devices that speak lines of text: HELLO <clientid> first, and then what is to be published on "up". */
#include "polygate.h"

enum {
    LINE_MAX = 1024, /* without a bound, a device that never ends its line would fill the memory */
    KEEPALIVE_MS = 300000, /* the gateway ends a device that is silent for 1.5 times as long */
};

/* One connection: zero at first. */
struct device {
    bool known, closing;
    pg_buffer line; /* the unfinished line at the end of what was read */
};

static void end(pg_conn conn, struct device *device) {
    device->closing = true;
    pg_close(conn);
}

static pg_error hello(pg_conn conn, struct device *device, pg_bytes line) {
    if (!pg_starts_with(line, PG("HELLO ")) || line.len == sizeof "HELLO " - 1) {
        return PG_BAD_PARAMS;
    }
    pg_client client = {.proto_name = PG("lines"), .proto_ver = PG("1"), .client_id = pg_from(line, sizeof "HELLO " - 1)};
    pg_error done = pg_authenticate(conn, &client);
    if (done == PG_OK) {
        done = pg_start_keepalive(conn, KEEPALIVE_MS);
    }
    if (done == PG_OK) {
        done = pg_subscribe(conn, PG("down"), PG_AT_LEAST_ONCE);
    }
    device->known = done == PG_OK;
    return done;
}

static void on_line(pg_conn conn, struct device *device, pg_bytes line) {
    pg_error done = device->known ? pg_publish(conn, PG("up"), PG_AT_LEAST_ONCE, line) : hello(conn, device, line);
    pg_buffer answer = {0};
    pg_add(&answer, done == PG_OK ? PG("OK") : PG("ERR "));
    if (done != PG_OK) {
        pg_add(&answer, pg_text(pg_error_name(done)));
    }
    pg_add_byte(&answer, '\n');
    pg_send(conn, pg_view(&answer));
    pg_free(&answer);
    if (!device->known) {
        end(conn, device);
    }
}

static void on_bytes(pg_conn conn, void *state, pg_bytes bytes) {
    struct device *device = state;
    for (size_t at = 0; at < bytes.len && !device->closing; at++) {
        if (bytes.ptr[at] == '\n') {
            on_line(conn, device, pg_view(&device->line));
            pg_clear(&device->line);
        } else if (device->line.len < LINE_MAX) {
            pg_add_byte(&device->line, bytes.ptr[at]);
        } else {
            pg_log(PG_WARN, PG("expected a line of at most 1024 bytes; closing"));
            end(conn, device);
        }
    }
}

static void on_message(pg_conn conn, void *state, const pg_message *message) {
    (void)state;
    pg_buffer line = {0};
    pg_add(&line, message->payload);
    pg_add_byte(&line, '\n');
    pg_send(conn, pg_view(&line));
    pg_free(&line);
}

static void on_keepalive_timeout(pg_conn conn, void *state) { end(conn, state); }

static void on_closed(pg_conn conn, void *state, pg_reason reason, pg_bytes words) {
    (void)conn, (void)reason, (void)words;
    struct device *device = state;
    pg_free(&device->line);
}

/* A connection goes on in the next version of this handler, also in the middle of a line. */
enum { FORMAT = 1 }; /* another number whenever what is carried over changes */

static bool snapshot(pg_conn conn, void *state, uint32_t *format, pg_buffer *bytes) {
    (void)conn;
    struct device *device = state;
    *format = FORMAT;
    pg_add_byte(bytes, device->known);
    pg_add(bytes, pg_view(&device->line));
    return true;
}

static pg_bytes restore(pg_conn conn, void *state, const pg_conn_info *info, uint32_t format, const pg_bytes *bytes) {
    (void)conn, (void)info;
    struct device *device = state;
    if (bytes == NULL || format != FORMAT || bytes->len == 0 || bytes->len > 1 + LINE_MAX) {
        return PG("the state is of another version");
    }
    device->known = bytes->ptr[0] == 1;
    pg_add(&device->line, pg_from(*bytes, 1));
    return PG("");
}

PG_MIGRATING_HANDLER(struct device, .on_bytes = on_bytes, .on_message = on_message,
                     .on_keepalive_timeout = on_keepalive_timeout, .on_closed = on_closed, .snapshot = snapshot,
                     .restore = restore)
