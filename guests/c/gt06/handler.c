/* GT06 terminals of Concox and others: positions and states become JSON, texts become commands. See README.md. */
#include "clock.h"
#include "frame.h"
#include "polygate.h"
#include "polygate_foreign.h"
#include "polygate_json.h"
#include "report.h"

enum {
    LOGIN = 0x01,
    COMMAND = 0x80,
    TIME_QUERY = 0x8a,
    IMEI_BYTES = 8,
    KEEPALIVE_S = 300,
    COMMAND_MAX = BODY_MAX - 7, /* beside it: its length, a flag of four bytes, a language of two */
    ENGLISH = 2,
};

typedef enum { SILENT, UNKNOWN, KNOWN, CLOSING } phase;

/* The peer's faults. The first of a kind on a connection is a warning, further ones are debug lines, and their number is
 * logged at the end. */
typedef enum { STRAY, CHECKSUM, NO_LOGIN, WRONG_LOGIN, KINDS } fault_kind;

static const char *const fault_names[] = {"bytes outside of frames", "wrong checksums", "frames before a login", "wrong logins"};

struct terminal {
    phase phase;
    uint8_t imei_digits[2 * IMEI_BYTES];
    size_t imei_len;
    uint32_t keepalive_s;
    int timezone_min;
    bool timezone_set; /* by the setting: what a login says does not count then */
    uint32_t commands;
    uint32_t faults[KINDS];
    uint32_t undecoded;
    uint8_t undecoded_kinds[2 * 256 / 8]; /* protocol numbers that a warning was given for */
    pg_foreign foreign;
    pg_buffer held; /* the unfinished frame at the end of what was read */
};

static pg_bytes imei_of(const struct terminal *terminal) {
    return (pg_bytes){terminal->imei_digits + sizeof terminal->imei_digits - terminal->imei_len, terminal->imei_len};
}

static void fault(struct terminal *terminal, fault_kind kind, pg_bytes what) {
    pg_log(terminal->faults[kind] == 0 ? PG_WARN : PG_DEBUG, what);
    terminal->faults[kind] += terminal->faults[kind] < UINT32_MAX;
}

/* A frame that is passed on as it is, or in part. */
static void undecoded(struct terminal *terminal, const gt06_frame *frame, pg_bytes why) {
    unsigned kind = frame->protocol + (frame->extended ? 256u : 0);
    bool warned = terminal->undecoded_kinds[kind / 8] >> kind % 8 & 1;
    pg_buffer line = {0};
    pg_add(&line, PG("frame 0x"));
    pg_add_hex(&line, (pg_bytes){&frame->protocol, 1});
    pg_add(&line, PG(" is passed on as it is: "));
    pg_add(&line, why);
    pg_log(warned ? PG_DEBUG : PG_WARN, pg_view(&line));
    pg_free(&line);
    terminal->undecoded_kinds[kind / 8] |= (uint8_t)(1u << kind % 8);
    terminal->undecoded += terminal->undecoded < UINT32_MAX;
}

static void failed(pg_level level, pg_bytes what, pg_error error) {
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
        failed(PG_WARN, PG("cannot send a frame"), error);
    }
}

static void send_frame(pg_conn conn, bool extended, uint8_t protocol, pg_bytes body, uint16_t serial) {
    pg_buffer frame = {0};
    gt06_add_frame(&frame, extended, protocol, body, serial);
    send_bytes(conn, pg_view(&frame));
    pg_free(&frame);
}

static void close_connection(pg_conn conn, struct terminal *terminal) {
    terminal->phase = CLOSING;
    pg_error error = pg_close(conn);
    if (error != PG_OK) {
        failed(PG_DEBUG, PG("cannot close"), error);
    }
}

static void add_topic(pg_buffer *topic, const struct terminal *terminal, pg_bytes end) {
    pg_add(topic, PG("gt06/"));
    pg_add(topic, imei_of(terminal));
    pg_add(topic, end);
}

static bool publish(pg_conn conn, const struct terminal *terminal, pg_bytes end, pg_bytes payload) {
    pg_buffer topic = {0};
    add_topic(&topic, terminal, end);
    pg_error error = pg_publish(conn, pg_view(&topic), PG_AT_LEAST_ONCE, payload);
    if (error != PG_OK) {
        failed(PG_WARN, PG("cannot publish"), error);
    }
    pg_free(&topic);
    return error == PG_OK;
}

/* ---- From the terminal ---- */

static void on_report(pg_conn conn, struct terminal *terminal, const gt06_frame *frame) {
    static const pg_bytes topics[] = {
        [REPORT_POSITION] = PG("/position"), [REPORT_STATUS] = PG("/status"), [REPORT_ALARM] = PG("/alarm"),
        [REPORT_CELLS] = PG("/cells"),       [REPORT_LOGIN] = PG("/login"),   [REPORT_MESSAGE] = PG("/message"),
    };
    pg_buffer json = {0}, answer = {0};
    gt06_report report = gt06_add_report(&json, imei_of(terminal), frame, terminal->timezone_min);
    if (report.undecoded.len > 0) {
        undecoded(terminal, frame, report.undecoded);
    }
    /* Without an answer the terminal sends it again: it may come twice, and is not lost. */
    if (publish(conn, terminal, topics[report.topic], pg_view(&json)) && gt06_add_answer(&answer, frame)) {
        send_bytes(conn, pg_view(&answer));
    }
    pg_free(&answer);
    pg_free(&json);
}

/* Sixteen digits, of which the first is a zero that only fills the byte. False when they are no digits. */
static bool read_imei(struct terminal *terminal, pg_bytes body) {
    uint8_t digits[2 * IMEI_BYTES];
    if (body.len < IMEI_BYTES) {
        return false;
    }
    for (size_t at = 0; at < sizeof digits; at++) {
        uint8_t digit = at % 2 == 0 ? body.ptr[at / 2] >> 4 : body.ptr[at / 2] & 15;
        if (digit > 9) {
            return false;
        }
        digits[at] = '0' + digit;
    }
    for (size_t at = 0; at < sizeof digits; at++) {
        terminal->imei_digits[at] = digits[at];
    }
    terminal->imei_len = digits[0] == '0' ? sizeof digits - 1 : sizeof digits;
    return true;
}

static void on_login(pg_conn conn, struct terminal *terminal, const gt06_frame *frame) {
    struct terminal before = *terminal;
    if (!read_imei(terminal, frame->body)) {
        fault(terminal, WRONG_LOGIN, PG("expected a login with an IMEI of 16 digits, found other bytes; closing"));
        close_connection(conn, terminal);
        return;
    }
    if (before.phase == KNOWN) {
        if (!pg_equal(imei_of(&before), imei_of(terminal))) {
            fault(terminal, WRONG_LOGIN, PG("expected one terminal on a connection, found the login of another; closing"));
            close_connection(conn, terminal);
            return;
        }
        send_frame(conn, false, LOGIN, PG(""), frame->serial);
        return;
    }
    pg_client client = {.proto_name = PG("gt06"), .proto_ver = PG("1"), .client_id = imei_of(terminal)};
    pg_error error = pg_authenticate(conn, &client);
    pg_buffer topic = {0};
    add_topic(&topic, terminal, PG("/command"));
    if (error == PG_OK && (error = pg_subscribe(conn, pg_view(&topic), PG_AT_LEAST_ONCE)) != PG_OK) {
        failed(PG_WARN, PG("it will get no commands, since its subscription was refused"), error);
        error = PG_OK;
    }
    pg_free(&topic);
    if (error != PG_OK) {
        failed(PG_INFO, PG("the login was refused; closing"), error);
        close_connection(conn, terminal);
        return;
    }
    terminal->phase = KNOWN;
    int minutes;
    if (gt06_login_timezone(frame->body, &minutes) && !terminal->timezone_set) {
        terminal->timezone_min = minutes;
    }
    send_frame(conn, false, LOGIN, PG(""), frame->serial);
    on_report(conn, terminal, frame);
}

/* UTC, as the protocol has it, whatever the setting timezone says of the terminal's clock. */
static void on_time_query(pg_conn conn, const gt06_frame *frame) {
    uint8_t date[6];
    clock_write((int64_t)(pg_now_ms() / 1000), date);
    send_frame(conn, frame->extended, TIME_QUERY, (pg_bytes){date, sizeof date}, frame->serial);
}

static void on_frame(pg_conn conn, struct terminal *terminal, const gt06_frame *frame) {
    if (frame->protocol == LOGIN && !frame->extended) {
        on_login(conn, terminal, frame);
    } else if (terminal->phase == KNOWN && frame->protocol == TIME_QUERY) {
        on_time_query(conn, frame);
    } else if (terminal->phase == KNOWN) {
        on_report(conn, terminal, frame);
    } else {
        fault(terminal, NO_LOGIN, PG("expected a login before anything else; the frame is dropped"));
    }
}

static void stray(struct terminal *terminal, pg_bytes bytes) {
    if (bytes.len > 0) {
        pg_buffer line = {0};
        pg_add(&line, PG("skipped "));
        pg_add_number(&line, (int64_t)bytes.len);
        pg_add(&line, PG(" bytes that are in no frame"));
        /* Before the first frame they may be another protocol's, which has a line of its own. */
        if (terminal->foreign.framed) {
            fault(terminal, STRAY, pg_view(&line));
        } else {
            pg_log(PG_DEBUG, pg_view(&line));
        }
        pg_free(&line);
        pg_foreign_stray(&terminal->foreign, bytes);
    }
}

static void start_keepalive(pg_conn conn, uint32_t interval_ms) {
    pg_error error = pg_start_keepalive(conn, interval_ms);
    if (error != PG_OK) {
        failed(PG_WARN, PG("cannot start the keepalive"), error);
    }
}

static void on_bytes(pg_conn conn, void *state, pg_bytes bytes) {
    struct terminal *terminal = state;
    uint32_t keepalive_ms = terminal->keepalive_s * 1000;
    if (terminal->phase == SILENT) {
        /* From the first byte: before it the listener's idle timeout bounds a silent peer, and after it one that never
         * says who it is must not stay for ever. */
        terminal->phase = UNKNOWN;
        start_keepalive(conn, keepalive_ms < PG_FOREIGN_KEEPALIVE_MS ? keepalive_ms : PG_FOREIGN_KEEPALIVE_MS);
    }
    pg_add(&terminal->held, bytes);
    size_t at = 0, skipped = 0, used;
    while (terminal->phase != CLOSING) {
        gt06_frame frame;
        pg_bytes rest = pg_from(pg_view(&terminal->held), at);
        gt06_found found = gt06_take(rest, &frame, &used);
        if (found == FRAME_UNFINISHED) {
            break;
        }
        at += used;
        if (found == FRAME_STRAY) {
            skipped += used;
            continue;
        }
        stray(terminal, pg_upto(pg_from(pg_view(&terminal->held), at - used - skipped), skipped));
        skipped = 0;
        if (found == FRAME_CORRUPT) {
            fault(terminal, CHECKSUM, PG("a frame was refused: its checksum is wrong"));
            pg_foreign_stray(&terminal->foreign, pg_upto(rest, used));
            continue;
        }
        if (!terminal->foreign.framed) {
            start_keepalive(conn, keepalive_ms);
        }
        pg_foreign_frame(&terminal->foreign);
        on_frame(conn, terminal, &frame);
    }
    pg_bytes held = pg_from(pg_view(&terminal->held), at);
    stray(terminal, pg_upto(pg_from(pg_view(&terminal->held), at - skipped), skipped));
    if (terminal->phase != CLOSING && pg_foreign_ends(&terminal->foreign, held, "GT06")) {
        close_connection(conn, terminal);
    }
    pg_drop(&terminal->held, terminal->phase == CLOSING ? terminal->held.len : at);
    if (terminal->held.len == 0) {
        pg_free(&terminal->held);
    }
}

/* ---- To the terminal ---- */

static bool is_command(pg_bytes text) {
    for (size_t at = 0; at < text.len; at++) {
        if (text.ptr[at] < 0x20 || text.ptr[at] > 0x7e) {
            return false;
        }
    }
    return text.len > 0 && text.len <= COMMAND_MAX;
}

static void on_message(pg_conn conn, void *state, const pg_message *message) {
    struct terminal *terminal = state;
    if (terminal->phase != KNOWN) {
        return;
    }
    pg_buffer json = {0};
    pg_json_open(&json, NULL, '{');
    pg_bytes topic = PG("/command/error");
    if (is_command(message->payload)) {
        topic = PG("/command/sent");
        uint32_t flag = ++terminal->commands;
        pg_buffer body = {0};
        pg_add_byte(&body, (uint8_t)(message->payload.len + 4));
        pg_add_u16(&body, (uint16_t)(flag >> 16));
        pg_add_u16(&body, (uint16_t)flag);
        pg_add(&body, message->payload);
        pg_add_u16(&body, ENGLISH);
        send_frame(conn, false, COMMAND, pg_view(&body), (uint16_t)flag);
        pg_free(&body);
        pg_json_text(&json, "command", message->payload);
        pg_json_number(&json, "flag", flag);
    } else {
        pg_json_text(&json, "error", PG("expected a command of 1 to 243 printable ASCII characters"));
        pg_json_number(&json, "bytes", (int64_t)message->payload.len);
    }
    pg_json_close(&json, '}');
    publish(conn, terminal, topic, pg_view(&json));
    pg_free(&json);
}

/* ---- The connection ---- */

static void read_settings(struct terminal *terminal) {
    pg_buffer text = {0};
    uint64_t seconds;
    terminal->keepalive_s = KEEPALIVE_S;
    if (pg_setting(PG("keepalive_s"), &text)) {
        if (pg_json_read_number(pg_view(&text), &seconds) && seconds >= 1 && seconds <= 65535) {
            terminal->keepalive_s = (uint32_t)seconds;
        } else {
            pg_log(PG_ERROR, PG("setting keepalive_s: expected 1 to 65535; using 300"));
        }
    }
    if (pg_setting(PG("timezone"), &text)) {
        terminal->timezone_set = clock_read_timezone(pg_view(&text), &terminal->timezone_min);
        if (!terminal->timezone_set) {
            pg_log(PG_ERROR, PG("setting timezone: expected \"+HH:MM\", \"-HH:MM\" or \"Z\"; using what terminals say"));
        }
    }
    pg_free(&text);
}

static void on_created(pg_conn conn, void *state, const pg_conn_info *info) {
    (void)conn, (void)info;
    read_settings(state);
}

static void on_keepalive_timeout(pg_conn conn, void *state) {
    (void)conn;
    struct terminal *terminal = state;
    if (terminal->foreign.framed) {
        pg_log(PG_INFO, PG("silent for one and a half times the keepalive"));
    } else {
        pg_foreign_log(&terminal->foreign, pg_view(&terminal->held), "GT06");
    }
}

static void count(struct terminal *terminal, pg_buffer *line) {
    for (size_t kind = 0; kind < KINDS; kind++) {
        if (terminal->faults[kind] > 0) {
            pg_add(line, line->len > 0 ? PG(", ") : PG(""));
            pg_add_number(line, terminal->faults[kind]);
            pg_add_byte(line, ' ');
            pg_add(line, pg_text(fault_names[kind]));
        }
    }
    if (terminal->undecoded > 0) {
        pg_add(line, line->len > 0 ? PG(", ") : PG(""));
        pg_add_number(line, terminal->undecoded);
        pg_add(line, PG(" frames passed on as they are"));
    }
}

static void on_closed(pg_conn conn, void *state, pg_reason reason, pg_bytes words) {
    (void)conn, (void)words;
    struct terminal *terminal = state;
    pg_buffer line = {0};
    if (reason == PG_CLOSED_BY_PEER && !terminal->foreign.framed && terminal->held.len + terminal->foreign.bytes > 0) {
        pg_foreign_log(&terminal->foreign, pg_view(&terminal->held), "GT06");
    } else {
        stray(terminal, pg_view(&terminal->held));
    }
    count(terminal, &line);
    if (line.len > 0) {
        pg_add(&line, PG(" on this connection in all"));
        pg_log(PG_INFO, pg_view(&line));
    }
    pg_free(&line);
    pg_free(&terminal->held);
}

PG_HANDLER(struct terminal, .on_created = on_created, .on_bytes = on_bytes, .on_message = on_message,
           .on_keepalive_timeout = on_keepalive_timeout, .on_closed = on_closed)
