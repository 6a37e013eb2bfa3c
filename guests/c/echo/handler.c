/* The JSON echo protocol of ExProto's own suite, as guests/echo/README.md has it: what a device writes as JSON is done,
 * and the result comes back. With the setting mode = "raw" every chunk goes back as it came. */
#include "polygate.h"
#include "polygate_json.h"

enum {
    CONNECT = 1, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, DISCONNECT, RAW_PUBLISH,
    OBJECT_MAX = 1 << 20, /* what a connection may keep of an unfinished object, in bytes */
};

/* One connection: the unfinished object at the end of what was read, and where in it we are. */
struct device {
    bool raw, in_string, escaped;
    size_t depth;
    pg_buffer held;
};

static void log_error(pg_level level, pg_bytes what, pg_error error) {
    pg_buffer line = {0};
    pg_add(&line, what);
    pg_add(&line, PG(": "));
    pg_add(&line, pg_text(pg_error_name(error)));
    pg_log(level, pg_view(&line));
    pg_free(&line);
}

static void send_bytes(pg_conn conn, pg_bytes bytes) {
    pg_error error = pg_send(conn, bytes);
    if (error != PG_OK) {
        log_error(PG_WARN, PG("cannot send"), error);
    }
}

static void close_connection(pg_conn conn) {
    pg_error error = pg_close(conn);
    if (error != PG_OK) {
        log_error(PG_DEBUG, PG("cannot close"), error);
    }
}

/* Code 0 when the request was done, 1 when it was not, and then the log says why. */
static void answer(pg_conn conn, int type, pg_error done) {
    if (done != PG_OK) {
        log_error(PG_INFO, PG("answering with code 1"), done);
    }
    pg_buffer json = {0};
    pg_json_open(&json, NULL, '{');
    pg_json_number(&json, "type", type);
    pg_json_number(&json, "code", done != PG_OK);
    pg_json_close(&json, '}');
    send_bytes(conn, pg_view(&json));
    pg_free(&json);
}

static bool text_member(pg_bytes object, const char *name, pg_buffer *text) {
    pg_bytes value;
    return pg_json_member(object, name, &value) && pg_json_read_text(value, text);
}

/* QoS 0 when absent. */
static bool qos_member(pg_bytes object, pg_qos *qos) {
    pg_bytes value;
    uint64_t number = 0;
    if (pg_json_member(object, "qos", &value) && (!pg_json_read_number(value, &number) || number > PG_EXACTLY_ONCE)) {
        return false;
    }
    *qos = (pg_qos)number;
    return true;
}

static void on_connect(pg_conn conn, pg_bytes request) {
    pg_buffer texts[5] = {0};
    pg_bytes info = PG("{}"), value;
    pg_json_member(request, "clientinfo", &info);
    text_member(info, "proto_name", &texts[0]);
    text_member(info, "proto_ver", &texts[1]);
    text_member(info, "clientid", &texts[2]);
    pg_client client = {.proto_name = pg_view(&texts[0]), .proto_ver = pg_view(&texts[1]), .client_id = pg_view(&texts[2])};
    if (text_member(info, "username", &texts[3])) {
        client.username = texts[3].len > 0 ? pg_view(&texts[3]) : PG("");
    }
    if (text_member(request, "password", &texts[4])) {
        client.password = texts[4].len > 0 ? pg_view(&texts[4]) : PG("");
    }
    pg_error done = pg_authenticate(conn, &client);
    uint64_t keepalive_s;
    if (done == PG_OK && pg_json_member(info, "keepalive", &value) && pg_json_read_number(value, &keepalive_s) &&
        keepalive_s > 0) {
        done = keepalive_s > UINT32_MAX / 1000 ? PG_BAD_PARAMS : pg_start_keepalive(conn, (uint32_t)keepalive_s * 1000);
    }
    answer(conn, CONNACK, done);
    if (done != PG_OK) {
        close_connection(conn);
    }
    for (size_t at = 0; at < sizeof texts / sizeof *texts; at++) {
        pg_free(&texts[at]);
    }
}

static void on_publish(pg_conn conn, pg_bytes request, bool raw) {
    pg_buffer topic = {0}, payload = {0};
    pg_qos qos;
    pg_error done = PG_BAD_PARAMS;
    if (text_member(request, "topic", &topic) && qos_member(request, &qos) && text_member(request, "payload", &payload)) {
        done = raw ? pg_raw_publish(pg_view(&topic), qos, pg_view(&payload))
                   : pg_publish(conn, pg_view(&topic), qos, pg_view(&payload));
    }
    answer(conn, PUBACK, done);
    pg_free(&topic);
    pg_free(&payload);
}

static void on_subscription(pg_conn conn, pg_bytes request, uint64_t type) {
    pg_buffer filter = {0};
    pg_qos qos;
    pg_error done = PG_BAD_PARAMS;
    if (text_member(request, "topic", &filter)) {
        if (type == UNSUBSCRIBE) {
            done = pg_unsubscribe(conn, pg_view(&filter));
        } else if (qos_member(request, &qos)) {
            done = pg_subscribe(conn, pg_view(&filter), qos);
        }
    }
    answer(conn, (int)type + 1, done);
    pg_free(&filter);
}

static void on_object(pg_conn conn, pg_bytes object) {
    pg_bytes value;
    uint64_t type = 0;
    if (pg_json_member(object, "type", &value)) {
        pg_json_read_number(value, &type);
    }
    switch (type) {
    case CONNECT: on_connect(conn, object); break;
    case PUBLISH: on_publish(conn, object, false); break;
    case RAW_PUBLISH: on_publish(conn, object, true); break;
    case SUBSCRIBE: case UNSUBSCRIBE: on_subscription(conn, object, type); break;
    case DISCONNECT: close_connection(conn); break;
    default: pg_log(PG_WARN, PG("expected a type of 1, 3, 5, 7, 9 or 10"));
    }
}

/* How many of the bytes it takes to complete an object: 0 when they do not, or `broken` when nothing that follows can be
 * understood. It only counts braces outside of strings, which finds the end of every object that is one. */
static size_t scan(struct device *device, pg_bytes bytes, bool *broken) {
    for (size_t at = 0; at < bytes.len; at++) {
        uint8_t byte = bytes.ptr[at];
        if (device->in_string) {
            if (device->escaped) {
                device->escaped = false;
            } else if (byte == '\\') {
                device->escaped = true;
            } else if (byte == '"') {
                device->in_string = false;
            }
        } else if (byte == '{') {
            device->depth++;
        } else if (device->depth == 0) {
            if (byte != ' ' && (byte < '\t' || byte > '\r')) {
                *broken = true;
                return 0;
            }
        } else if (byte == '"') {
            device->in_string = true;
        } else if (byte == '}' && --device->depth == 0) {
            return at + 1;
        }
    }
    return 0;
}

static void on_created(pg_conn conn, void *state, const pg_conn_info *info) {
    (void)conn, (void)info;
    struct device *device = state;
    pg_buffer mode = {0};
    if (pg_setting(PG("mode"), &mode)) {
        device->raw = pg_equal(pg_view(&mode), PG("raw"));
        if (!device->raw && !pg_equal(pg_view(&mode), PG("json"))) {
            pg_log(PG_ERROR, PG("setting mode: expected \"json\" or \"raw\"; using \"json\""));
        }
    }
    pg_free(&mode);
}

static void on_bytes(pg_conn conn, void *state, pg_bytes bytes) {
    struct device *device = state;
    if (device->raw) {
        send_bytes(conn, bytes);
        return;
    }
    bool broken = false;
    size_t len;
    while ((len = scan(device, bytes, &broken)) > 0) {
        pg_add(&device->held, pg_upto(bytes, len));
        bytes = pg_from(bytes, len);
        on_object(conn, pg_view(&device->held));
        pg_free(&device->held);
    }
    if (broken || (device->depth > 0 && device->held.len + bytes.len > OBJECT_MAX)) {
        pg_log(PG_WARN, broken ? PG("expected a JSON object, found another byte; closing")
                               : PG("expected an object of at most 1 MiB; closing"));
        pg_free(&device->held);
        close_connection(conn);
    } else if (device->depth > 0) {
        pg_add(&device->held, bytes);
    }
}

static void on_message(pg_conn conn, void *state, const pg_message *message) {
    (void)state;
    pg_buffer json = {0};
    pg_json_open(&json, NULL, '{');
    pg_json_number(&json, "type", PUBLISH);
    pg_json_text(&json, "topic", message->topic);
    pg_json_number(&json, "qos", message->qos);
    pg_json_text(&json, "payload", message->payload);
    pg_json_close(&json, '}');
    send_bytes(conn, pg_view(&json));
    pg_free(&json);
}

static void on_closed(pg_conn conn, void *state, pg_reason reason, pg_bytes words) {
    (void)conn, (void)reason, (void)words;
    struct device *device = state;
    pg_free(&device->held);
}

PG_HANDLER(struct device, .on_created = on_created, .on_bytes = on_bytes, .on_message = on_message, .on_closed = on_closed)
