#include "report.h"

#include "clock.h"
#include "polygate_json.h"

/* ---- Reading with every bound checked ---- */

typedef struct {
    pg_bytes rest;
    bool short_of; /* something was read that is not there; what was read then is 0 */
} reader;

static uint64_t take(reader *reader, size_t bytes) {
    uint64_t number = 0;
    if (reader->rest.len < bytes) {
        reader->short_of = true;
        reader->rest.len = 0;
        return 0;
    }
    for (size_t at = 0; at < bytes; at++) {
        number = number << 8 | reader->rest.ptr[at];
    }
    reader->rest = pg_from(reader->rest, bytes);
    return number;
}

/* ---- Words for bits and numbers ---- */

static const char *alarm_name(unsigned alarm) {
    switch (alarm) {
    case 0x01: return "sos";
    case 0x02: return "power_cut";
    case 0x03: return "vibration";
    case 0x04: return "fence_enter";
    case 0x05: return "fence_exit";
    case 0x06: return "overspeed";
    case 0x09: return "movement";
    case 0x0a: return "gps_blind_spot_enter";
    case 0x0b: return "gps_blind_spot_exit";
    case 0x0c: return "power_on";
    case 0x0d: return "gps_first_fix";
    case 0x0e: return "external_power_low";
    case 0x0f: return "external_power_low_protection";
    case 0x10: return "sim_changed";
    case 0x11: return "power_off";
    case 0x12: return "flight_mode";
    case 0x13: return "tampering";
    case 0x14: return "door";
    case 0x15: return "power_low_shutdown";
    case 0x16: return "sound";
    case 0x17: return "false_base_station";
    case 0x18: return "cover_opened";
    case 0x19: return "internal_battery_low";
    case 0x20: return "deep_sleep";
    case 0x23: return "fall";
    case 0x29: return "harsh_acceleration";
    case 0x2a: return "sharp_left_turn";
    case 0x2b: return "sharp_right_turn";
    case 0x2c: return "collision";
    case 0x30: return "harsh_braking";
    default: return NULL;
    }
}

static void add_alarm(pg_buffer *json, unsigned alarm) {
    const char *name = alarm_name(alarm);
    if (name != NULL) {
        pg_json_text(json, NULL, pg_text(name));
    } else if (alarm != 0) {
        pg_buffer unnamed = {0};
        uint8_t byte = (uint8_t)alarm;
        pg_add(&unnamed, PG("alarm_0x"));
        pg_add_hex(&unnamed, (pg_bytes){&byte, 1});
        pg_json_text(json, NULL, pg_view(&unnamed));
        pg_free(&unnamed);
    }
}

/* The terminal information of heartbeats and alarms: bits, and in bits 3 to 5 an alarm of its own. */
static void add_terminal_status(pg_buffer *json, unsigned information) {
    static const struct {
        uint8_t bit;
        const char *name;
    } names[] = {{0, "armed"}, {1, "acc_on"}, {2, "charging"}, {6, "gps_on"}, {7, "fuel_and_power_cut"}};
    pg_json_open(json, "status", '[');
    for (size_t at = 0; at < sizeof names / sizeof *names; at++) {
        if (information >> names[at].bit & 1) {
            pg_json_text(json, NULL, pg_text(names[at].name));
        }
    }
    pg_json_close(json, ']');
}

static const char *status_alarm(unsigned information) {
    static const char *const names[] = {NULL, "vibration", "power_cut", "internal_battery_low", "sos"};
    unsigned alarm = information >> 3 & 7;
    return alarm < sizeof names / sizeof *names ? names[alarm] : NULL;
}

/* ---- Positions ---- */

/* What follows the fixed part of a position. */
typedef enum {
    AFTER_NOTHING, /* unknown: passed on as it is */
    AFTER_CELL,    /* the cell */
    AFTER_CELL_STATE, /* the cell, ignition, why it was sent, whether it was kept, perhaps the mileage */
    AFTER_ALARM,   /* the cell with its length before it, the terminal's state, an alarm */
} trailer;

/* Where a protocol number has its position. */
typedef struct {
    bool extended;
    uint8_t protocol;
    uint8_t date_at;
    uint8_t gps_at; /* after the date */
    bool wide_cell; /* four bytes of area and eight of cell, and an operator of one or two */
    trailer after;
} layout;

static const layout layouts[] = {
    {false, 0x10, 0, 0, false, AFTER_NOTHING},
    {false, 0x11, 0, 0, false, AFTER_NOTHING},
    {false, 0x12, 0, 0, false, AFTER_CELL},
    {false, 0x16, 0, 0, false, AFTER_ALARM},
    {false, 0x17, 0, 0, false, AFTER_NOTHING},
    {false, 0x1e, 0, 0, false, AFTER_NOTHING},
    {false, 0x22, 0, 0, false, AFTER_CELL_STATE},
    {false, 0x24, 0, 0, false, AFTER_NOTHING},
    {false, 0x26, 0, 0, false, AFTER_ALARM},
    {false, 0x27, 0, 0, false, AFTER_ALARM},
    {false, 0x32, 0, 0, false, AFTER_NOTHING},
    {true, 0x32, 0, 1, false, AFTER_NOTHING},
    {false, 0x34, 4, 0, false, AFTER_NOTHING},
    {false, 0x36, 0, 0, false, AFTER_NOTHING},
    {false, 0x37, 0, 0, false, AFTER_NOTHING},
    {false, 0xa0, 0, 0, true, AFTER_CELL_STATE},
    {false, 0xa2, 0, 0, false, AFTER_NOTHING},
    {false, 0xa4, 0, 0, true, AFTER_ALARM},
};

static const layout *layout_of(const gt06_frame *frame) {
    for (size_t at = 0; at < sizeof layouts / sizeof *layouts; at++) {
        if (layouts[at].protocol == frame->protocol && layouts[at].extended == frame->extended) {
            return &layouts[at];
        }
    }
    return NULL;
}

typedef struct {
    int64_t epoch_s;
    int64_t latitude, longitude; /* in millionths of a degree */
    uint8_t satellites, speed_kmh;
    uint16_t course_deg;
    bool positioned;
} position;

/* The fixed part: six bytes of date, eighteen with the position. Empty when it is one, else what is wrong with it. */
static pg_bytes read_position(reader *reader, const layout *layout, int timezone_min, position *position) {
    enum { DEGREE = 1800000, NORTH = 0x400, WEST = 0x800, FIXED = 0x1000, COURSE = 0x3ff };
    take(reader, layout->date_at);
    pg_bytes date = reader->rest;
    take(reader, 6);
    take(reader, layout->gps_at);
    uint64_t satellites = take(reader, 1), latitude = take(reader, 4), longitude = take(reader, 4);
    uint64_t speed = take(reader, 1), course = take(reader, 2);
    if (reader->short_of) {
        return PG("expected a position, found too few bytes");
    }
    if (!clock_read(date.ptr, timezone_min, &position->epoch_s)) {
        return PG("expected a position, found a time that does not exist");
    }
    if (latitude > 90ull * DEGREE || longitude > 180ull * DEGREE) {
        return PG("expected a position, found degrees that are not on this earth");
    }
    if ((course & COURSE) > 360) {
        return PG("expected a position, found a course of more than 360 degrees");
    }
    /* To a millionth, rounded: the wire's unit is five ninths of one. */
    int64_t north = (int64_t)(latitude * 10 + 9) / 18, east = (int64_t)(longitude * 10 + 9) / 18;
    position->latitude = course & NORTH ? north : -north;
    position->longitude = course & WEST ? -east : east;
    position->satellites = (uint8_t)(satellites & 15);
    position->speed_kmh = (uint8_t)speed;
    position->course_deg = (uint16_t)(course & COURSE);
    position->positioned = (course & FIXED) != 0;
    return PG("");
}

static void add_cell(pg_buffer *json, reader *reader, bool wide) {
    uint64_t mcc = take(reader, 2);
    uint64_t mnc = take(reader, wide && mcc & 0x8000 ? 2 : 1);
    uint64_t lac = take(reader, wide ? 4 : 2), cell = take(reader, wide ? 8 : 3);
    if (reader->short_of || mcc == 0 || cell > INT64_MAX) {
        return;
    }
    pg_json_open(json, "cell", '{');
    pg_json_number(json, "mcc", (int64_t)(mcc & 0x7fff));
    pg_json_number(json, "mnc", (int64_t)mnc);
    pg_json_number(json, "lac", (int64_t)lac);
    pg_json_number(json, "cell_id", (int64_t)cell);
    pg_json_close(json, '}');
}

static void add_alarms(pg_buffer *json, unsigned alarm, const char *other) {
    const char *name = alarm_name(alarm);
    pg_json_open(json, "alarms", '[');
    add_alarm(json, alarm);
    if (other != NULL && !(name != NULL && pg_equal(pg_text(name), pg_text(other)))) {
        pg_json_text(json, NULL, pg_text(other));
    }
    pg_json_close(json, ']');
}

static void add_alarm_trailer(pg_buffer *json, reader *reader, bool wide) {
    /* The length counts itself; without one there is no cell. */
    size_t cell_len = wide ? (reader->rest.len > 1 && reader->rest.ptr[1] & 0x80 ? 17 : 16) : 9;
    pg_bytes before = reader->rest;
    if (take(reader, 1) != cell_len || before.len < cell_len + 5) {
        reader->rest = before;
        add_alarms(json, 0, NULL);
        return;
    }
    add_cell(json, reader, wide);
    unsigned information = (unsigned)take(reader, 1), battery = (unsigned)take(reader, 1);
    unsigned signal = (unsigned)take(reader, 1), alarm = (unsigned)take(reader, 1);
    take(reader, 1); /* the language of its texts */
    add_alarms(json, alarm, status_alarm(information));
    add_terminal_status(json, information);
    pg_json_number(json, "battery_level", battery);
    pg_json_number(json, "signal_strength", signal);
}

static void add_state_trailer(pg_buffer *json, reader *reader, bool wide) {
    add_cell(json, reader, wide);
    if (reader->short_of || reader->rest.len < 3) {
        return;
    }
    bool acc_on = take(reader, 1) == 1;
    uint64_t mode = take(reader, 1);
    bool kept = take(reader, 1) == 1;
    pg_json_open(json, "status", '[');
    if (acc_on) {
        pg_json_text(json, NULL, PG("acc_on"));
    }
    pg_json_close(json, ']');
    pg_json_number(json, "upload_mode", (int64_t)mode);
    pg_json_flag(json, "kept", kept);
    if (reader->rest.len == 4) {
        pg_json_number(json, "mileage_m", (int64_t)take(reader, 4));
    }
}

static void add_position(pg_buffer *json, reader *reader, const layout *layout, const position *position) {
    pg_buffer time = {0};
    clock_add_rfc3339(&time, position->epoch_s);
    pg_json_text(json, "time", pg_view(&time));
    pg_free(&time);
    pg_json_flag(json, "positioned", position->positioned);
    pg_json_decimal(json, "latitude", position->latitude, 6);
    pg_json_decimal(json, "longitude", position->longitude, 6);
    pg_json_number(json, "speed_kmh", position->speed_kmh);
    pg_json_number(json, "course_deg", position->course_deg);
    pg_json_number(json, "satellites", position->satellites);
    pg_bytes before = reader->rest;
    switch (layout->after) {
    case AFTER_NOTHING: break;
    case AFTER_CELL: add_cell(json, reader, layout->wide_cell); break;
    case AFTER_CELL_STATE: add_state_trailer(json, reader, layout->wide_cell); break;
    case AFTER_ALARM: add_alarm_trailer(json, reader, layout->wide_cell); break;
    }
    pg_bytes rest = reader->short_of ? before : reader->rest;
    if (rest.len > 0) {
        pg_json_hex(json, "rest", rest);
    }
}

/* ---- Everything else ---- */

static bool add_status(pg_buffer *json, const gt06_frame *frame) {
    reader reader = {frame->body, false};
    unsigned information = (unsigned)take(&reader, 1);
    bool in_volts = frame->protocol == 0x23;
    unsigned power = (unsigned)take(&reader, in_volts ? 2 : 1), signal = (unsigned)take(&reader, 1);
    if (reader.short_of) {
        return false;
    }
    add_alarms(json, 0, status_alarm(information));
    add_terminal_status(json, information);
    if (in_volts) {
        pg_json_decimal(json, "battery_v", power, 2);
    } else {
        pg_json_number(json, "battery_level", power);
    }
    pg_json_number(json, "signal_strength", signal);
    if (reader.rest.len > 0) {
        pg_json_hex(json, "rest", reader.rest);
    }
    return true;
}

static bool is_printable(pg_bytes text) {
    for (size_t at = 0; at < text.len; at++) {
        if (text.ptr[at] < 0x20 || text.ptr[at] > 0x7e) {
            return false;
        }
    }
    return text.len > 0;
}

/* The answer to a command: the command's flag, and a text. */
static void add_answer(pg_buffer *json, const gt06_frame *frame) {
    reader reader = {frame->body, false};
    pg_bytes text;
    uint64_t flag;
    if (frame->protocol == 0x15 && !frame->extended) {
        size_t len = (size_t)take(&reader, 1);
        flag = take(&reader, 4);
        if (reader.short_of || len < 4 || reader.rest.len < len - 4) {
            return;
        }
        text = pg_upto(reader.rest, len - 4);
    } else if (frame->protocol == 0x21 && frame->extended) {
        flag = take(&reader, 4);
        take(&reader, 1); /* how the text is encoded: it shows */
        if (reader.short_of) {
            return;
        }
        text = reader.rest;
    } else {
        return;
    }
    pg_json_number(json, "answers", (int64_t)flag);
    while (text.len > 0 && text.ptr[text.len - 1] == 0) {
        text.len--;
    }
    if (is_printable(text)) {
        pg_json_text(json, "text", text);
    }
}

static void open_report(pg_buffer *json, pg_bytes imei, const gt06_frame *frame) {
    pg_buffer id = {0};
    pg_json_open(json, NULL, '{');
    pg_json_text(json, "imei", imei);
    pg_add(&id, PG("0x"));
    pg_add_hex(&id, (pg_bytes){&frame->protocol, 1});
    pg_json_text(json, "id", pg_view(&id));
    pg_free(&id);
    pg_json_number(json, "serial", frame->serial);
    if (frame->extended) {
        pg_json_flag(json, "extended", true);
    }
}

gt06_report gt06_add_report(pg_buffer *json, pg_bytes imei, const gt06_frame *frame, int timezone_min) {
    const layout *layout = layout_of(frame);
    pg_bytes fault = PG("");
    open_report(json, imei, frame);
    if (layout != NULL) {
        reader reader = {frame->body, false};
        position position;
        fault = read_position(&reader, layout, timezone_min, &position);
        if (fault.len == 0) {
            add_position(json, &reader, layout, &position);
            pg_json_close(json, '}');
            return REPORT_POSITION;
        }
    }
    bool heartbeat = !frame->extended && (frame->protocol == 0x13 || frame->protocol == 0x23);
    if (heartbeat && add_status(json, frame)) {
        pg_json_close(json, '}');
        return REPORT_STATUS;
    }
    add_answer(json, frame);
    if (fault.len > 0) {
        pg_json_text(json, "error", fault);
    }
    pg_json_hex(json, "body", frame->body);
    pg_json_close(json, '}');
    return REPORT_MESSAGE;
}

bool gt06_wants_answer(const gt06_frame *frame) {
    switch (frame->protocol) {
    case 0x13: case 0x23:                       /* heartbeats */
    case 0x16: case 0x26: case 0x27: case 0xa4: /* alarms */
        return !frame->extended;
    default:
        return false;
    }
}
