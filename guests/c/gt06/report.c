#include "report.h"

#include "clock.h"
#include "polygate_json.h"

/* ---- Reading with every bound checked ---- */

typedef struct reader {
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

/* Fewer when there are not so many. */
static pg_bytes take_bytes(reader *reader, size_t bytes) {
    pg_bytes taken = pg_upto(reader->rest, bytes);
    reader->short_of |= taken.len < bytes;
    reader->rest = pg_from(reader->rest, taken.len);
    return taken;
}

static bool is_zero(pg_bytes bytes) {
    for (size_t at = 0; at < bytes.len; at++) {
        if (bytes.ptr[at] != 0) {
            return false;
        }
    }
    return true;
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
    case 0xfe: return "acc_on";
    case 0xff: return "acc_off";
    default: return NULL;
    }
}

/* The alarms of cameras (0x95) have numbers of their own. */
static const char *camera_alarm_name(unsigned alarm) {
    switch (alarm) {
    case 0x01: return "sos";
    case 0x80: return "vibration";
    case 0x87: return "overspeed";
    case 0x90: return "harsh_acceleration";
    case 0x91: return "harsh_braking";
    case 0x92: return "sharp_turn";
    case 0x93: return "collision";
    default: return NULL;
    }
}

static void add_alarm(pg_buffer *json, const char *name, unsigned alarm) {
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
    static const char *const names[] = {NULL, "vibration", "power_cut", "internal_battery_low", "sos", NULL, NULL,
                                        NULL};
    return names[information >> 3 & 7];
}

static void add_alarms(pg_buffer *json, const char *name, unsigned alarm, const char *other) {
    pg_json_open(json, "alarms", '[');
    add_alarm(json, name, alarm);
    if (other != NULL && !(name != NULL && pg_equal(pg_text(name), pg_text(other)))) {
        pg_json_text(json, NULL, pg_text(other));
    }
    pg_json_close(json, ']');
}

static void add_time(pg_buffer *json, int64_t epoch_s) {
    pg_buffer time = {0};
    clock_add_rfc3339(&time, epoch_s);
    pg_json_text(json, "time", pg_view(&time));
    pg_free(&time);
}

static void add_digits(pg_buffer *json, const char *name, pg_bytes bcd) {
    pg_buffer digits = {0};
    pg_add_hex(&digits, bcd);
    pg_bytes text = pg_view(&digits);
    while (text.len > 0 && text.ptr[text.len - 1] == 'f') {
        text.len--;
    }
    pg_json_text(json, name, text);
    pg_free(&digits);
}

/* An IMEI or IMSI: fifteen digits behind a zero that fills the first byte. */
static void add_identity(pg_buffer *json, const char *name, pg_bytes bcd) {
    pg_buffer digits = {0};
    pg_add_hex(&digits, bcd);
    pg_bytes text = pg_view(&digits);
    pg_json_text(json, name, text.len > 0 && text.ptr[0] == '0' ? pg_from(text, 1) : text);
    pg_free(&digits);
}

/* ---- Texts, in ASCII, UTF-8 or UTF-16 ---- */

static bool is_readable(uint32_t character) {
    return character == '\t' || character == '\r' || character == '\n' || (character >= 0x20 && character != 0x7f);
}

static bool add_utf8(pg_buffer *out, pg_bytes text) {
    for (pg_bytes rest = text; rest.len > 0;) {
        size_t len = pg_character(rest);
        if (len == 0 || !is_readable(len > 1 ? 0x80 : rest.ptr[0])) {
            return false;
        }
        rest = pg_from(rest, len);
    }
    pg_add(out, text);
    return true;
}

static bool add_utf16(pg_buffer *out, pg_bytes text) {
    reader reader = {text, false};
    if (text.len % 2 != 0) {
        return false;
    }
    while (reader.rest.len > 0) {
        uint32_t character = (uint32_t)take(&reader, 2);
        if (character >= 0xd800 && character < 0xdc00) {
            uint32_t low = (uint32_t)take(&reader, 2);
            if (low < 0xdc00 || low >= 0xe000) {
                return false;
            }
            character = 0x10000 + ((character - 0xd800) << 10) + (low - 0xdc00);
        } else if (character >= 0xdc00 && character < 0xe000) {
            return false;
        }
        if (!is_readable(character)) {
            return false;
        }
        pg_add_character(out, character);
    }
    return true;
}

/* Adds a text in whatever it is written; some firmware mixes ASCII with UTF-16, piece by piece between "&&". */
static bool add_text(pg_buffer *json, const char *name, pg_bytes text) {
    pg_buffer read = {0};
    while (text.len > 0 && text.ptr[text.len - 1] == 0) {
        text.len--;
    }
    bool readable = add_utf8(&read, text) || add_utf16(&read, text);
    if (!readable) {
        pg_clear(&read);
        readable = true;
        while (readable && text.len > 0) {
            size_t end = 0;
            while (end < text.len && !pg_starts_with(pg_from(text, end), PG("&&"))) {
                end++;
            }
            pg_bytes piece = pg_upto(text, end), mark = pg_upto(pg_from(text, end), 2);
            readable = add_utf8(&read, piece) || add_utf16(&read, piece);
            pg_add(&read, mark);
            text = pg_from(text, end + mark.len);
        }
    }
    if (readable) {
        pg_json_text(json, name, pg_view(&read));
    }
    pg_free(&read);
    return readable;
}

static pg_bytes unreadable(void) { return PG("expected a text in ASCII, UTF-8 or UTF-16, found other bytes"); }

/* ---- Cells and Wi-Fi stations ---- */

/* Mobile country codes by ITU-T E.212; bit 15 on the wire says that the network code has two bytes. */
static bool is_mcc(uint64_t mcc) {
    mcc &= 0x7fff;
    return (mcc >= 200 && mcc < 800) || mcc == 901 || mcc == 1;
}

/* How a cell is written: country, network, area, cell; lengths in bytes. A network of 0 is one byte, or two with bit 15. */
typedef struct {
    uint8_t network, area, cell;
} cell_form;

static const cell_form NARROW = {0, 2, 3}, WIDE = {0, 4, 8}, GT02 = {2, 2, 4};

static size_t network_len(cell_form form, pg_bytes at_mcc) {
    return form.network != 0 ? form.network : at_mcc.len > 0 && at_mcc.ptr[0] & 0x80 ? 2 : 1;
}

static size_t cell_len(cell_form form, pg_bytes at_mcc) { return 2 + network_len(form, at_mcc) + form.area + form.cell; }

static void add_cell(pg_buffer *json, reader *reader, cell_form form) {
    size_t network = network_len(form, reader->rest);
    uint64_t mcc = take(reader, 2), mnc = take(reader, network);
    uint64_t area = take(reader, form.area), cell = take(reader, form.cell);
    if (reader->short_of || mcc == 0 || cell > INT64_MAX) {
        return;
    }
    pg_json_open(json, "cell", '{');
    pg_json_number(json, "mcc", (int64_t)(mcc & 0x7fff));
    pg_json_number(json, "mnc", (int64_t)mnc);
    pg_json_number(json, "lac", (int64_t)area);
    pg_json_number(json, "cell_id", (int64_t)cell);
    pg_json_close(json, '}');
}

/* A list of cells, with what may follow it. */
typedef struct {
    uint8_t protocol;
    cell_form form;
    uint8_t cells;
    bool stations; /* Wi-Fi stations follow, with their number before them */
} cell_list;

static const cell_list cell_lists[] = {
    {0x18, {0, 2, 3}, 7, false}, {0x24, {0, 2, 3}, 7, false}, {0x28, {0, 2, 3}, 7, false}, {0x2e, {0, 2, 3}, 7, false},
    {0x2c, {0, 2, 3}, 7, true},  {0x33, {0, 4, 8}, 6, true},  {0xa1, {0, 4, 8}, 7, false}, {0xa2, {0, 4, 8}, 7, true},
};

static void add_cells(pg_buffer *json, reader *reader, cell_form form, unsigned count) {
    size_t network = network_len(form, reader->rest);
    uint64_t mcc = take(reader, 2), mnc = take(reader, network);
    pg_json_number(json, "mcc", (int64_t)(mcc & 0x7fff));
    pg_json_number(json, "mnc", (int64_t)mnc);
    pg_json_open(json, "cells", '[');
    for (unsigned at = 0; at < count; at++) {
        uint64_t area = take(reader, form.area), cell = take(reader, form.cell), strength = take(reader, 1);
        if (reader->short_of || (area == 0 && cell == 0) || cell > INT64_MAX) {
            continue;
        }
        pg_json_open(json, NULL, '{');
        pg_json_number(json, "lac", (int64_t)area);
        pg_json_number(json, "cell_id", (int64_t)cell);
        pg_json_number(json, "rssi", (int64_t)strength);
        pg_json_close(json, '}');
    }
    pg_json_close(json, ']');
}

static void add_stations(pg_buffer *json, reader *reader, size_t count) {
    pg_json_open(json, "wifi", '[');
    for (size_t at = 0; at < count; at++) {
        pg_bytes address = take_bytes(reader, 6);
        uint64_t strength = take(reader, 1);
        if (is_zero(address)) {
            continue;
        }
        pg_buffer text = {0};
        for (size_t byte = 0; byte < address.len; byte++) {
            if (byte > 0) {
                pg_add_byte(&text, ':');
            }
            pg_add_hex(&text, pg_upto(pg_from(address, byte), 1));
        }
        pg_json_open(json, NULL, '{');
        pg_json_text(json, "mac", pg_view(&text));
        pg_json_number(json, "strength", (int64_t)strength);
        pg_json_close(json, '}');
        pg_free(&text);
    }
    pg_json_close(json, ']');
}

/* Whether the body has the length of such a list: date, country, network, cells, timing advance, and what follows. */
static bool fits(const cell_list *list, pg_bytes body) {
    enum { DATE = 6, TIMING = 1, LANGUAGE = 2, STATION = 7 };
    if (body.len < DATE + 2) {
        return false;
    }
    pg_bytes at_mcc = pg_from(body, DATE);
    uint64_t mcc = (uint64_t)(at_mcc.ptr[0] << 8 | at_mcc.ptr[1]);
    size_t fixed = DATE + 2 + network_len(list->form, at_mcc) + list->cells * (list->form.area + list->form.cell + 1u) + TIMING;
    if (body.len < fixed || (mcc != 0 && !is_mcc(mcc))) {
        return false;
    }
    size_t rest = body.len - fixed;
    if (list->stations && rest > 0) {
        size_t behind = 1 + STATION * (size_t)body.ptr[fixed];
        return rest == behind || rest == behind + LANGUAGE;
    }
    return rest == 0 || rest == LANGUAGE;
}

static const cell_list *cell_list_of(const gt06_frame *frame) {
    for (size_t at = 0; !frame->extended && at < sizeof cell_lists / sizeof *cell_lists; at++) {
        if (cell_lists[at].protocol == frame->protocol && fits(&cell_lists[at], frame->body)) {
            return &cell_lists[at];
        }
    }
    return NULL;
}

static void add_cell_list(pg_buffer *json, const cell_list *list, pg_bytes body, int timezone_min) {
    int64_t epoch_s;
    reader reader = {body, false};
    pg_bytes date = take_bytes(&reader, 6);
    if (clock_read(date.ptr, timezone_min, &epoch_s)) {
        add_time(json, epoch_s);
    } else {
        pg_json_hex(json, "clock", date);
    }
    add_cells(json, &reader, list->form, list->cells);
    pg_json_number(json, "timing_advance", (int64_t)take(&reader, 1));
    if (list->stations && reader.rest.len > 0) {
        add_stations(json, &reader, (size_t)take(&reader, 1));
    }
    if (reader.rest.len > 0) {
        pg_json_number(json, "language", (int64_t)take(&reader, 2));
    }
}

/* 0x24 of terminals that say how many cells follow: date, timing advance, country, network, number, cells. */
static bool add_counted_cells(pg_buffer *json, const gt06_frame *frame, int timezone_min) {
    enum { FIXED = 6 + 1 + 2 + 1 + 1, CELL = 6 };
    int64_t epoch_s;
    pg_bytes body = frame->body;
    if (frame->extended || frame->protocol != 0x24 || body.len < FIXED || !clock_read(body.ptr, timezone_min, &epoch_s)) {
        return false;
    }
    uint64_t mcc = (uint64_t)(body.ptr[7] << 8 | body.ptr[8]);
    size_t count = body.ptr[10], behind = FIXED + count * CELL;
    if (!is_mcc(mcc) || mcc & 0x8000 || count > 7 || body.len < behind || !is_zero(pg_from(body, behind))) {
        return false;
    }
    reader reader = {pg_from(body, 6), false};
    add_time(json, epoch_s);
    pg_json_number(json, "timing_advance", (int64_t)take(&reader, 1));
    /* The number stands between the network and the cells. */
    uint8_t without[2 + 1 + 7 * CELL];
    for (size_t at = 0; at < 3; at++) {
        without[at] = body.ptr[7 + at];
    }
    for (size_t at = 0; at < count * CELL; at++) {
        without[3 + at] = body.ptr[FIXED + at];
    }
    reader.rest = (pg_bytes){without, 3 + count * CELL};
    add_cells(json, &reader, NARROW, (unsigned)count);
    return true;
}

/* 0x34 of GT02: date, language, country(2), network(2), a number of cells, and the cell in use with its strength. Other
 * terminals have a position under this number, whose body is longer. */
static bool add_gt02_cell(pg_buffer *json, const gt06_frame *frame, int timezone_min) {
    enum { BODY = 50 };
    int64_t epoch_s;
    reader reader = {frame->body, false};
    if (frame->extended || frame->protocol != 0x34 || frame->body.len != BODY ||
        !clock_read(frame->body.ptr, timezone_min, &epoch_s) || !is_mcc((uint64_t)(frame->body.ptr[7] << 8 | frame->body.ptr[8]))) {
        return false;
    }
    uint8_t cell[10];
    for (size_t at = 0; at < sizeof cell; at++) {
        cell[at] = frame->body.ptr[7 + at + (at < 4 ? 0 : 1)];
    }
    struct reader in_use = {{cell, sizeof cell}, false};
    add_time(json, epoch_s);
    add_cell(json, &in_use, GT02);
    take_bytes(&reader, 7 + 4 + 1 + 6);
    pg_json_number(json, "rssi", (int64_t)take(&reader, 1));
    if (!is_zero(reader.rest)) {
        pg_json_hex(json, "rest", reader.rest);
    }
    return true;
}

/* Under some numbers come positions or cells; where a position has its satellites, cells have a country. */
static bool may_be_cells(const gt06_frame *frame) {
    for (size_t at = 0; !frame->extended && at < sizeof cell_lists / sizeof *cell_lists; at++) {
        if (cell_lists[at].protocol == frame->protocol) {
            return frame->body.len >= 8 && is_mcc((uint64_t)(frame->body.ptr[6] << 8 | frame->body.ptr[7]));
        }
    }
    return false;
}

/* ---- Positions ---- */

/* What follows the fixed part of a position. */
typedef enum {
    AFTER_NOTHING,    /* unknown: passed on as it is */
    AFTER_CELL,       /* the cell */
    AFTER_CELL_STATE, /* the cell, ignition, why it was sent, whether it was kept, perhaps the mileage or modules */
    AFTER_CELLS,      /* a list of cells */
    AFTER_PHONE,      /* a phone number that asks for the address */
    AFTER_ALARM,      /* the cell with its length before it, the terminal's state, an alarm */
} trailer;

/* Where a protocol number has its position. */
typedef struct {
    bool extended;
    uint8_t protocol;
    uint8_t date_at;
    uint8_t gps_at; /* after the date */
    cell_form form;
    trailer after;
} layout;

static const layout layouts[] = {
    {false, 0x10, 0, 0, {0, 2, 3}, AFTER_NOTHING},
    {false, 0x11, 0, 0, {2, 2, 4}, AFTER_CELL},
    {false, 0x12, 0, 0, {0, 2, 3}, AFTER_CELL},
    {false, 0x16, 0, 0, {0, 2, 3}, AFTER_ALARM},
    {false, 0x17, 0, 0, {0, 2, 3}, AFTER_NOTHING},
    {false, 0x1a, 0, 0, {0, 2, 3}, AFTER_PHONE},
    {false, 0x1e, 0, 0, {0, 2, 3}, AFTER_CELLS},
    {false, 0x22, 0, 0, {0, 2, 3}, AFTER_CELL_STATE},
    {false, 0x24, 0, 0, {0, 2, 3}, AFTER_NOTHING},
    /* A terminal writes its number and two dates before it. */
    {false, 0x25, 15, 0, {0, 2, 3}, AFTER_NOTHING},
    {false, 0x25, 0, 0, {0, 2, 3}, AFTER_CELL_STATE},
    {false, 0x26, 0, 0, {0, 2, 3}, AFTER_ALARM},
    {false, 0x27, 0, 0, {0, 2, 3}, AFTER_ALARM},
    {false, 0x2a, 0, 0, {0, 2, 3}, AFTER_PHONE},
    {false, 0x2d, 0, 0, {0, 2, 3}, AFTER_CELL_STATE},
    {false, 0x31, 0, 0, {0, 2, 3}, AFTER_CELL_STATE},
    {false, 0x32, 0, 0, {2, 2, 4}, AFTER_ALARM},
    {true, 0x32, 0, 1, {0, 2, 3}, AFTER_NOTHING},
    {true, 0x33, 0, 1, {0, 2, 3}, AFTER_NOTHING},
    {false, 0x34, 4, 0, {0, 2, 3}, AFTER_NOTHING},
    {false, 0x36, 0, 0, {0, 2, 3}, AFTER_NOTHING},
    {false, 0x37, 0, 0, {0, 2, 3}, AFTER_CELL_STATE},
    {false, 0x38, 0, 0, {0, 2, 3}, AFTER_CELL_STATE},
    {false, 0x61, 8, 0, {0, 2, 3}, AFTER_NOTHING},
    {false, 0xa0, 0, 0, {0, 4, 8}, AFTER_CELL_STATE},
    {false, 0xa1, 0, 0, {0, 4, 8}, AFTER_CELL_STATE},
    {false, 0xa2, 0, 0, {0, 4, 8}, AFTER_CELL},
    {false, 0xa3, 0, 0, {0, 4, 8}, AFTER_ALARM},
    {false, 0xa4, 0, 0, {0, 4, 8}, AFTER_ALARM},
};

static bool is_layout_of(const layout *layout, const gt06_frame *frame) {
    return layout->protocol == frame->protocol && layout->extended == frame->extended;
}

typedef struct position {
    bool timed;
    int64_t epoch_s;
    int64_t latitude, longitude; /* in millionths of a degree */
    uint8_t satellites, speed_kmh;
    uint16_t course_deg;
    bool positioned;
    bool ignition_known, ignition;
} position;

/* The eighteen bytes with the position, or those that are asked for. Empty when they are one, else what is wrong. */
static pg_bytes read_place(reader *reader, position *position, bool satellites, bool speed) {
    enum { DEGREE = 1800000, NORTH = 0x400, WEST = 0x800, FIXED = 0x1000, IGNITION_KNOWN = 0x4000, IGNITION = 0x8000, COURSE = 0x3ff };
    uint64_t seen = satellites ? take(reader, 1) : 0, latitude = take(reader, 4), longitude = take(reader, 4);
    uint64_t speed_kmh = speed ? take(reader, 1) : 0, course = take(reader, 2);
    if (reader->short_of) {
        return PG("expected a position, found too few bytes");
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
    position->satellites = (uint8_t)(seen & 15);
    position->speed_kmh = (uint8_t)speed_kmh;
    position->course_deg = (uint16_t)(course & COURSE);
    position->positioned = (course & FIXED) != 0;
    position->ignition_known = (course & IGNITION_KNOWN) != 0;
    position->ignition = (course & IGNITION) != 0;
    return PG("");
}

/* What became of the fixed part: empty when all of it can be used, else what is wrong with it. */
static pg_bytes read_position(reader *reader, const layout *layout, int timezone_min, position *position) {
    *position = (struct position){0};
    take_bytes(reader, layout->date_at);
    pg_bytes date = take_bytes(reader, 6);
    take(reader, layout->gps_at);
    pg_bytes fault = read_place(reader, position, true, true);
    if (fault.len > 0) {
        return fault;
    }
    position->timed = clock_read(date.ptr, timezone_min, &position->epoch_s);
    /* All zeros are what a terminal sends that has not learnt the time yet. */
    return position->timed || is_zero(date) ? PG("") : PG("expected a position, found a time that does not exist");
}

static void add_alarm_state(pg_buffer *json, reader *reader) {
    unsigned information = (unsigned)take(reader, 1), battery = (unsigned)take(reader, 1);
    unsigned signal = (unsigned)take(reader, 1), alarm = (unsigned)take(reader, 1);
    unsigned language = reader->rest.len > 0 ? (unsigned)take(reader, 1) : 0;
    add_alarms(json, alarm_name(alarm), alarm, status_alarm(information));
    pg_json_number(json, "alarm_code", alarm);
    add_terminal_status(json, information);
    pg_json_number(json, "terminal_information", information);
    pg_json_number(json, "battery_level", battery);
    pg_json_number(json, "signal_strength", signal);
    pg_json_number(json, "language", language);
    if (reader->rest.len == 1) {
        pg_json_number(json, "fence", (int64_t)take(reader, 1));
    }
}

/* The cell with its length before it, and the state. Terminals disagree whether the length counts itself, and some leave
 * it out; what the whole frame has room for decides. False when nothing fits. */
static bool add_alarm_trailer(pg_buffer *json, reader *reader, cell_form form) {
    enum { STATE = 4, LANGUAGE = 1 };
    pg_bytes at_mcc = pg_from(reader->rest, 1);
    size_t len = reader->rest.len, cell = cell_len(form, at_mcc);
    if (len == 0) {
        return false;
    }
    size_t says = reader->rest.ptr[0];
    if (form.network == GT02.network && len != 1 + cell + STATE + LANGUAGE) {
        form = NARROW;
        cell = cell_len(form, at_mcc);
    }
    if (form.network == GT02.network || ((says == cell || says == cell + 1) && len >= 1 + cell + STATE)) {
        take(reader, 1);
        add_cell(json, reader, form);
    } else if (says == 0 && len >= 1 + STATE && len <= 1 + STATE + LANGUAGE + 1) {
        take(reader, 1);
    } else if (cell = cell_len(form, reader->rest), len == cell + STATE + LANGUAGE) {
        /* Terminals that leave the length out have the voltage of the vehicle where others have a level of the battery. */
        add_cell(json, reader, form);
        unsigned information = (unsigned)take(reader, 1);
        pg_json_decimal(json, "power_v", (int64_t)take(reader, 2), 2);
        pg_json_number(json, "signal_strength", (int64_t)take(reader, 1));
        unsigned alarm = (unsigned)take(reader, 1);
        add_alarms(json, alarm_name(alarm), alarm, status_alarm(information));
        pg_json_number(json, "alarm_code", alarm);
        add_terminal_status(json, information);
        pg_json_number(json, "terminal_information", information);
        return true;
    } else {
        return false;
    }
    add_alarm_state(json, reader);
    return true;
}

/* Modules behind a position: number(2) length(1) data. Those that are not known stay where they are. */
static void add_modules(pg_buffer *json, reader *reader) {
    while (reader->rest.len >= 3) {
        struct reader module = *reader;
        uint64_t number = take(&module, 2);
        size_t len = (size_t)take(&module, 1);
        if (number == 0x27 && len == 2) {
            pg_json_decimal(json, "power_v", (int64_t)take(&module, 2), 2);
        } else if (number == 0x2e && len == 4) {
            pg_json_number(json, "mileage_m", (int64_t)take(&module, 4));
        } else if (number == 0x3b && len == 2) {
            pg_json_decimal(json, "accuracy_m", (int64_t)take(&module, 2), 2);
        } else {
            return;
        }
        if (module.short_of) {
            return;
        }
        *reader = module;
    }
}

static void add_ignition(pg_buffer *json, const position *position) {
    if (position->ignition_known) {
        pg_json_open(json, "status", '[');
        if (position->ignition) {
            pg_json_text(json, NULL, PG("acc_on"));
        }
        pg_json_close(json, ']');
    }
}

static void add_state_trailer(pg_buffer *json, reader *reader, const layout *layout, const position *position) {
    add_cell(json, reader, layout->form);
    if (reader->short_of || reader->rest.len < 3) {
        add_ignition(json, position);
        return;
    }
    bool acc_on = take(reader, 1) != 0;
    uint64_t mode = take(reader, 1);
    bool kept = take(reader, 1) != 0;
    pg_json_open(json, "status", '[');
    if (acc_on) {
        pg_json_text(json, NULL, PG("acc_on"));
    }
    pg_json_close(json, ']');
    pg_json_number(json, "upload_mode", (int64_t)mode);
    pg_json_flag(json, "kept", kept);
    if (layout->protocol == 0x37) {
        add_modules(json, reader);
    } else if (reader->rest.len == 4) {
        pg_json_number(json, "mileage_m", (int64_t)take(reader, 4));
    }
}

static void add_phone(pg_buffer *json, reader *reader) {
    enum { PHONE = 21 };
    pg_bytes phone = pg_upto(reader->rest, PHONE);
    if (reader->rest.len < PHONE) {
        return;
    }
    reader->rest = pg_from(reader->rest, PHONE);
    if (!is_zero(phone) && !add_text(json, "phone", phone)) {
        pg_json_hex(json, "phone_hex", phone);
    }
    if (reader->rest.len == 2) {
        pg_json_number(json, "language", (int64_t)take(reader, 2));
    }
}

static void add_place(pg_buffer *json, const position *position) {
    if (position->timed) {
        add_time(json, position->epoch_s);
    }
    pg_json_flag(json, "positioned", position->positioned && position->timed);
    pg_json_decimal(json, "latitude", position->latitude, 6);
    pg_json_decimal(json, "longitude", position->longitude, 6);
}

static void add_position(pg_buffer *json, reader *reader, const layout *layout, const position *position) {
    add_place(json, position);
    pg_json_number(json, "speed_kmh", position->speed_kmh);
    pg_json_number(json, "course_deg", position->course_deg);
    pg_json_number(json, "satellites", position->satellites);
    struct reader before = *reader;
    switch (layout->after) {
    case AFTER_NOTHING: add_ignition(json, position); break;
    case AFTER_CELL:
        add_cell(json, reader, layout->form);
        add_ignition(json, position);
        break;
    case AFTER_CELL_STATE: add_state_trailer(json, reader, layout, position); break;
    case AFTER_CELLS:
        if (reader->rest.len >= 3 + 7 * 6) {
            add_cells(json, reader, layout->form, 7);
        }
        add_ignition(json, position);
        break;
    case AFTER_PHONE:
        add_phone(json, reader);
        add_ignition(json, position);
        break;
    case AFTER_ALARM:
        if (!add_alarm_trailer(json, reader, layout->form)) {
            add_alarms(json, NULL, 0, NULL);
            add_ignition(json, position);
        }
        break;
    }
    pg_bytes rest = reader->short_of ? before.rest : reader->rest;
    if (rest.len > 0) {
        pg_json_hex(json, "rest", rest);
    }
}

/* ---- Alarms without a usable position ---- */

/* An alarm whose date or place is none: told as an alarm all the same. False when not even its state can be read. */
static bool add_alarm_without_place(pg_buffer *json, const layout *layout, pg_bytes body) {
    enum { FIXED = 18 };
    reader reader = {pg_from(body, layout->date_at + layout->gps_at + FIXED), false};
    pg_json_flag(json, "positioned", false);
    return add_alarm_trailer(json, &reader, layout->form);
}

/* 0x19 and 0xa5: a cell, with its length before it or without, and the terminal's state. */
static bool add_cell_alarm(pg_buffer *json, const gt06_frame *frame) {
    if (frame->extended || (frame->protocol != 0x19 && frame->protocol != 0xa5)) {
        return false;
    }
    cell_form form = frame->protocol == 0xa5 ? WIDE : NARROW;
    reader reader = {frame->body, false};
    size_t cell = cell_len(form, frame->body);
    pg_bytes state = pg_from(frame->body, cell);
    if (!is_mcc((uint64_t)take(&reader, 2)) || state.len < 4 || state.len > 6) {
        reader = (struct reader){frame->body, false};
        size_t says = frame->body.len > 0 ? frame->body.ptr[0] : 0;
        cell = cell_len(form, pg_from(frame->body, 1));
        if ((says != cell && says != cell + 1) || frame->body.len < 1 + cell + 4 || frame->body.len > 1 + cell + 6) {
            return false;
        }
        take(&reader, 1);
    } else {
        reader = (struct reader){frame->body, false};
    }
    pg_json_flag(json, "positioned", false);
    add_cell(json, &reader, form);
    add_alarm_state(json, &reader);
    return true;
}

/* 0x95 of cameras. Three forms: a date and the alarm; with a place and names of files; and the same behind ff ff and a
 * number, with satellites and speed. */
static bool add_camera_alarm(pg_buffer *json, const gt06_frame *frame, int timezone_min, gt06_topic *topic) {
    if (frame->extended || frame->protocol != 0x95) {
        return false;
    }
    reader reader = {frame->body, false};
    bool numbered = pg_starts_with(frame->body, PG("\xff\xff"));
    take(&reader, numbered ? 3 : 0);
    pg_bytes date = take_bytes(&reader, 6);
    position position = {0};
    if (reader.short_of || reader.rest.len == 0) {
        return false;
    }
    position.timed = clock_read(date.ptr, timezone_min, &position.epoch_s);
    bool placed = reader.rest.len > 7;
    if (placed && read_place(&reader, &position, numbered, false).len > 0) {
        return false;
    }
    unsigned speed = numbered && placed ? (unsigned)take(&reader, 2) : 0;
    if (numbered && placed) {
        take(&reader, 2);
    }
    unsigned alarm = (unsigned)take(&reader, 1);
    if (reader.short_of) {
        return false;
    }
    if (placed) {
        add_place(json, &position);
        pg_json_number(json, "course_deg", position.course_deg);
        if (numbered) {
            pg_json_number(json, "speed_kmh", speed);
            pg_json_number(json, "satellites", position.satellites);
        }
    } else {
        if (position.timed) {
            add_time(json, position.epoch_s);
        }
        pg_json_flag(json, "positioned", false);
    }
    add_alarms(json, camera_alarm_name(alarm), alarm, NULL);
    pg_json_number(json, "alarm_code", alarm);
    add_ignition(json, &position);
    if (reader.rest.len > 2 && is_zero(pg_upto(reader.rest, 2)) && add_text(json, "files", pg_from(reader.rest, 2))) {
        reader.rest.len = 0;
    }
    if (reader.rest.len > 0) {
        pg_json_hex(json, "rest", reader.rest);
    }
    *topic = placed && position.timed ? REPORT_POSITION : REPORT_ALARM;
    return true;
}

/* ---- Everything else ---- */

static bool add_status(pg_buffer *json, const gt06_frame *frame) {
    if (frame->extended || (frame->protocol != 0x13 && frame->protocol != 0x23)) {
        return false;
    }
    reader reader = {frame->body, false};
    unsigned information = (unsigned)take(&reader, 1);
    bool in_volts = frame->protocol == 0x23;
    unsigned power = (unsigned)take(&reader, in_volts ? 2 : 1), signal = (unsigned)take(&reader, 1);
    if (reader.short_of) {
        return false;
    }
    add_alarms(json, NULL, 0, status_alarm(information));
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

/* 0x15, 0x81 and 0x82: length(1) flag(4) text, language(2). 0x21 behind 7979: flag(4) encoding(1) text.
 * Empty when it is an answer that can be read, else what is wrong. */
static bool is_answer(const gt06_frame *frame) {
    return frame->extended ? frame->protocol == 0x21
                           : frame->protocol == 0x15 || frame->protocol == 0x81 || frame->protocol == 0x82;
}

static pg_bytes add_answer(pg_buffer *json, const gt06_frame *frame) {
    enum { FLAG = 4, LANGUAGE = 2, ASCII = 1 };
    reader reader = {frame->body, false};
    pg_bytes text;
    if (frame->extended) {
        pg_json_number(json, "answers", (int64_t)take(&reader, FLAG));
        uint64_t encoding = take(&reader, 1);
        if (reader.short_of) {
            return PG("expected a flag, an encoding and a text, found too few bytes");
        }
        pg_json_text(json, "encoding", encoding == ASCII ? PG("ascii") : PG("utf-16-be"));
        text = reader.rest;
        pg_buffer utf16 = {0};
        /* Short texts in UTF-16 of Latin letters are ASCII with zeros between. */
        bool wide = encoding != ASCII && add_utf16(&utf16, text);
        if (wide) {
            pg_json_text(json, "text", pg_view(&utf16));
        }
        pg_free(&utf16);
        return wide || add_text(json, "text", text) ? PG("") : unreadable();
    }
    size_t len = (size_t)take(&reader, 1);
    pg_json_number(json, "answers", (int64_t)take(&reader, FLAG));
    if (reader.short_of) {
        return PG("expected a length, a flag and a text, found too few bytes");
    }
    /* Some terminals write a length of 0, or one of another text; the language ends the frame. */
    bool fits = len >= FLAG && reader.rest.len >= len - FLAG;
    text = pg_upto(reader.rest, fits ? len - FLAG : reader.rest.len - (reader.rest.len < LANGUAGE ? 0 : LANGUAGE));
    reader.rest = pg_from(reader.rest, text.len);
    bool readable = add_text(json, "text", text);
    if (reader.rest.len == LANGUAGE) {
        pg_json_number(json, "language", (int64_t)take(&reader, LANGUAGE));
    }
    return readable ? PG("") : unreadable();
}

/* 0x94: a number that says what follows, and that. */
static pg_bytes add_information(pg_buffer *json, const gt06_frame *frame, int timezone_min) {
    reader reader = {frame->body, false};
    if (!frame->extended) {
        pg_json_decimal(json, "power_v", (int64_t)take(&reader, 2), 2);
        return reader.short_of || reader.rest.len > 0 ? PG("expected a voltage in two bytes, found other bytes") : PG("");
    }
    unsigned kind = (unsigned)take(&reader, 1);
    pg_bytes rest = reader.rest;
    bool read = true;
    pg_json_number(json, "information", kind);
    switch (kind) {
    case 0x00: pg_json_decimal(json, "power_v", (int64_t)take(&reader, 2), 2); break;
    case 0x04: read = add_text(json, "text", rest); reader.rest.len = 0; break;
    case 0x05:
        if (rest.len >= 7) {
            int64_t epoch_s;
            if (clock_read(take_bytes(&reader, 6).ptr, timezone_min, &epoch_s)) {
                add_time(json, epoch_s);
            }
        }
        unsigned door = (unsigned)take(&reader, 1);
        pg_json_flag(json, "door_open", (door & 1) != 0);
        pg_json_flag(json, "door_trigger", (door & 2) != 0);
        pg_json_flag(json, "port_high", (door & 4) != 0);
        break;
    case 0x08:
    case 0x09: read = false; break;
    case 0x0a:
        read = rest.len == 26;
        if (read) {
            add_identity(json, "terminal_imei", take_bytes(&reader, 8));
            add_identity(json, "imsi", take_bytes(&reader, 8));
            add_digits(json, "iccid", take_bytes(&reader, 10));
        }
        break;
    case 0x0b: pg_json_number(json, "network", (int64_t)take(&reader, 1)); break;
    case 0x0d:
        /* A date may stand before the sensor's text. */
        if (rest.len > 6 && rest.ptr[0] != '!') {
            int64_t epoch_s;
            if (clock_read(take_bytes(&reader, 6).ptr, timezone_min, &epoch_s)) {
                add_time(json, epoch_s);
            }
        }
        read = add_text(json, "text", reader.rest);
        reader.rest.len = 0;
        break;
    case 0x1b:
        read = rest.len >= 6;
        if (read) {
            take(&reader, 2);
            pg_json_hex(json, "card", take_bytes(&reader, 4));
            reader.rest.len = 0;
        }
        break;
    case 0x1e:
        read = rest.len == 8;
        pg_json_decimal(json, "temperature_c", (int32_t)take(&reader, 4), 1);
        pg_json_decimal(json, "humidity_percent", (int64_t)take(&reader, 4), 1);
        break;
    default: read = false;
    }
    if (!read || reader.short_of) {
        return PG("expected a kind of information that is known here, found another one or too few bytes");
    }
    if (reader.rest.len > 0) {
        pg_json_hex(json, "rest", reader.rest);
    }
    return PG("");
}

/* 0x9b: what a device behind the terminal says; 3 is a reader of cards. */
static pg_bytes add_passed_through(pg_buffer *json, const gt06_frame *frame) {
    reader reader = {frame->body, false};
    pg_json_number(json, "module", (int64_t)take(&reader, 1));
    pg_json_hex(json, "data", reader.rest);
    pg_bytes text = reader.rest;
    while (text.len > 0 && text.ptr[0] < 0x20) {
        text = pg_from(text, 1);
    }
    while (text.len > 0 && text.ptr[text.len - 1] <= 0x20) {
        text.len--;
    }
    pg_buffer read = {0};
    if (text.len > 0 && add_utf8(&read, text)) {
        pg_json_text(json, "text", pg_view(&read));
    }
    pg_free(&read);
    return reader.short_of ? PG("expected the number of a module, found nothing") : PG("");
}

/* 0xa7: a cell and a phone number that asks for its address. */
static pg_bytes add_address_query(pg_buffer *json, const gt06_frame *frame) {
    reader reader = {frame->body, false};
    add_cell(json, &reader, WIDE);
    add_phone(json, &reader);
    return reader.short_of || reader.rest.len > 0 ? PG("expected a cell and a phone number, found other bytes") : PG("");
}

/* ---- Modular frames: number(2) length(2) data, again and again ---- */

static void add_module(pg_buffer *json, unsigned number, pg_bytes data) {
    pg_buffer id = {0};
    uint8_t bytes[] = {(uint8_t)(number >> 8), (uint8_t)number};
    pg_add(&id, PG("0x"));
    pg_add_hex(&id, (pg_bytes){bytes, 2});
    pg_json_open(json, NULL, '{');
    pg_json_text(json, "id", pg_view(&id));
    pg_json_hex(json, "data", data);
    pg_json_close(json, '}');
    pg_free(&id);
}

static bool add_known_module(pg_buffer *json, unsigned number, pg_bytes data, position *position, pg_bytes *fault) {
    reader reader = {data, false};
    switch (number << 8 | (data.len & 0xff)) {
    case 0x0001 << 8 | 8: add_identity(json, "terminal_imei", data); return true;
    case 0x0002 << 8 | 8: add_identity(json, "imsi", data); return true;
    case 0x0003 << 8 | 10: add_digits(json, "iccid", data); return true;
    case 0x0009 << 8 | 1: pg_json_number(json, "satellites_used", data.ptr[0]); return true;
    case 0x000a << 8 | 1: pg_json_number(json, "satellites_visible", data.ptr[0]); return true;
    case 0x0011 << 8 | 10: {
        add_cell(json, &reader, (cell_form){2, 2, 3});
        pg_json_number(json, "rssi", (int64_t)take(&reader, 1));
        return true;
    }
    case 0x0018 << 8 | 2: pg_json_decimal(json, "battery_v", (int64_t)take(&reader, 2), 2); return true;
    case 0x0028 << 8 | 1: pg_json_decimal(json, "hdop", data.ptr[0], 1); return true;
    case 0x0029 << 8 | 4: pg_json_number(json, "index", (int64_t)take(&reader, 4)); return true;
    case 0x002b << 8 | 1: pg_json_number(json, "event", data.ptr[0]); return true;
    case 0x002e << 8 | 4: pg_json_number(json, "mileage_m", (int64_t)take(&reader, 4)); return true;
    case 0x0033 << 8 | 18: {
        int64_t epoch_s = (int64_t)take(&reader, 4);
        uint64_t satellites = take(&reader, 1);
        int16_t altitude_m = (int16_t)take(&reader, 2);
        *fault = read_place(&reader, position, false, true);
        if (fault->len > 0) {
            return false;
        }
        position->timed = epoch_s > 0;
        position->epoch_s = epoch_s;
        position->satellites = (uint8_t)satellites;
        add_place(json, position);
        pg_json_number(json, "altitude_m", altitude_m);
        pg_json_number(json, "speed_kmh", position->speed_kmh);
        pg_json_number(json, "course_deg", position->course_deg);
        pg_json_number(json, "satellites", position->satellites);
        add_ignition(json, position);
        return true;
    }
    default: return false;
    }
}

static const char *module_alarm(unsigned event) {
    switch (event) {
    case 0x11: return "internal_battery_low";
    case 0x12: return "external_power_low";
    case 0x13: return "power_cut";
    case 0x14: return "tampering";
    default: return NULL;
    }
}

static gt06_topic add_modular(pg_buffer *json, pg_bytes body, pg_bytes *fault) {
    pg_buffer others = {0};
    position position = {0};
    reader reader = {body, false};
    uint64_t seen = 0;
    const char *alarm = NULL;
    pg_bytes unread = body;
    while (reader.rest.len > 0) {
        unread = reader.rest;
        unsigned number = (unsigned)take(&reader, 2);
        size_t len = (size_t)take(&reader, 2);
        pg_bytes data = pg_upto(reader.rest, len);
        if (reader.short_of || data.len < len) {
            *fault = PG("expected modules of a number, a length and data, found too few bytes");
            break;
        }
        reader.rest = pg_from(reader.rest, len);
        unread = reader.rest;
        /* A second one would be a second member of the same name. */
        bool again = number < 64 && seen >> number & 1;
        seen |= number < 64 ? 1ull << number : 0;
        if (number == 0x2b && len == 1 && !again) {
            alarm = module_alarm(data.ptr[0]);
        }
        if (again || !add_known_module(json, number, data, &position, fault)) {
            add_module(&others, number, data);
        }
    }
    if (alarm != NULL) {
        add_alarms(json, alarm, 0, NULL);
    }
    if (others.len > 0) {
        pg_json_open(json, "modules", '[');
        pg_add(json, pg_view(&others));
        pg_json_close(json, ']');
    }
    if (unread.len > 0) {
        pg_json_hex(json, "rest", unread);
    }
    pg_free(&others);
    return position.timed ? REPORT_POSITION : fault->len > 0 ? REPORT_MESSAGE : REPORT_STATUS;
}

/* ---- Logins ---- */

bool gt06_login_timezone(pg_bytes body, int *minutes) {
    enum { IMEI_AND_MODEL = 10, WEST = 8, HOURS_MAX = 14 };
    reader reader = {pg_from(body, IMEI_AND_MODEL), false};
    unsigned bits = (unsigned)take(&reader, 2), hours = bits >> 4;
    if (reader.short_of || hours / 100 > HOURS_MAX || hours % 100 > 59) {
        return false;
    }
    *minutes = (int)(hours / 100 * 60 + hours % 100);
    *minutes = bits & WEST ? -*minutes : *minutes;
    return true;
}

static void add_login(pg_buffer *json, pg_bytes body) {
    int minutes;
    reader reader = {pg_from(body, 8), false};
    if (reader.rest.len >= 2) {
        pg_json_hex(json, "model", pg_upto(reader.rest, 2));
        take(&reader, 2);
    }
    if (gt06_login_timezone(body, &minutes)) {
        pg_buffer zone = {0};
        int distance = minutes < 0 ? -minutes : minutes;
        const int digits[] = {distance / 600, distance / 60 % 10, -1, distance % 60 / 10, distance % 10};
        pg_add_byte(&zone, minutes < 0 ? '-' : '+');
        for (size_t at = 0; at < sizeof digits / sizeof *digits; at++) {
            pg_add_byte(&zone, digits[at] < 0 ? ':' : (uint8_t)('0' + digits[at]));
        }
        pg_json_text(json, "timezone", pg_view(&zone));
        pg_free(&zone);
        unsigned bits = (unsigned)take(&reader, 2);
        if (bits & 1) {
            pg_json_text(json, "language", PG("chinese"));
        } else if (bits & 2) {
            pg_json_text(json, "language", PG("english"));
        }
    }
    if (reader.rest.len > 0) {
        pg_json_hex(json, "rest", reader.rest);
    }
}

/* ---- A frame ---- */

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

/* What can be read without a doubt, or false: then nothing that was added counts. */
static bool add_decoded(pg_buffer *json, const gt06_frame *frame, int timezone_min, gt06_report *report) {
    const cell_list *list = cell_list_of(frame);
    if (list != NULL) {
        add_cell_list(json, list, frame->body, timezone_min);
        report->topic = REPORT_CELLS;
        return true;
    }
    report->topic = REPORT_CELLS;
    if (add_counted_cells(json, frame, timezone_min) || add_gt02_cell(json, frame, timezone_min)) {
        return true;
    }
    if (may_be_cells(frame)) {
        report->undecoded = PG("expected a position or cells, found a country's code and another length than cells have");
        return false;
    }
    report->topic = REPORT_ALARM;
    if (add_cell_alarm(json, frame) || add_camera_alarm(json, frame, timezone_min, &report->topic)) {
        return true;
    }
    report->topic = REPORT_STATUS;
    if (add_status(json, frame)) {
        return true;
    }
    for (size_t at = 0; at < sizeof layouts / sizeof *layouts; at++) {
        reader reader = {frame->body, false};
        position position;
        if (!is_layout_of(&layouts[at], frame)) {
            continue;
        }
        pg_bytes fault = read_position(&reader, &layouts[at], timezone_min, &position);
        bool usable = fault.len == 0 && position.timed;
        if (usable || (fault.len == 0 && layouts[at].after != AFTER_ALARM)) {
            add_position(json, &reader, &layouts[at], &position);
            report->topic = REPORT_POSITION;
            report->undecoded = PG("");
            return true;
        }
        size_t before = json->len;
        if (layouts[at].after == AFTER_ALARM && add_alarm_without_place(json, &layouts[at], frame->body)) {
            if (fault.len > 0) {
                pg_json_text(json, "error", fault);
                pg_json_hex(json, "body", frame->body);
            }
            report->topic = REPORT_ALARM;
            report->undecoded = fault;
            return true;
        }
        json->len = before;
        report->undecoded = fault.len > 0 ? fault : PG("expected an alarm, found a state that cannot be read");
    }
    return false;
}

gt06_report gt06_add_report(pg_buffer *json, pg_bytes imei, const gt06_frame *frame, int timezone_min) {
    gt06_report report = {.topic = REPORT_MESSAGE, .undecoded = PG("")};
    open_report(json, imei, frame);
    size_t head = json->len;
    if (frame->protocol == 0x01 && !frame->extended) {
        add_login(json, frame->body);
        report.topic = REPORT_LOGIN;
    } else if (frame->protocol == 0x70 && frame->extended) {
        report.topic = add_modular(json, frame->body, &report.undecoded);
        if (report.undecoded.len > 0) {
            pg_json_text(json, "error", report.undecoded);
            pg_json_hex(json, "body", frame->body);
        }
    } else if (!add_decoded(json, frame, timezone_min, &report)) {
        json->len = head;
        report.topic = REPORT_MESSAGE;
        if (is_answer(frame)) {
            report.undecoded = add_answer(json, frame);
        } else if (frame->protocol == 0x94) {
            report.undecoded = add_information(json, frame, timezone_min);
        } else if (frame->protocol == 0x9b) {
            report.undecoded = add_passed_through(json, frame);
        } else if (frame->protocol == 0xa7 && !frame->extended) {
            report.undecoded = add_address_query(json, frame);
        } else if (report.undecoded.len == 0) {
            report.undecoded = PG("expected a protocol number that is known here, found another one");
        }
        if (report.undecoded.len > 0) {
            pg_json_text(json, "error", report.undecoded);
        }
        pg_json_hex(json, "body", frame->body);
    }
    pg_json_close(json, '}');
    return report;
}

/* ---- Answers ---- */

bool gt06_add_answer(pg_buffer *out, const gt06_frame *frame) {
    uint8_t protocol = frame->protocol;
    bool extended = frame->extended;
    pg_bytes body = PG("");
    if (!extended) {
        switch (protocol) {
        case 0x13: case 0x23: break;                                                   /* heartbeats */
        case 0x16: case 0x19: case 0x26: case 0x27: case 0x95: case 0xa3: case 0xa4: case 0xa5: break; /* alarms */
        case 0x32: protocol = 0x26; break;                                             /* the alarm of GT02 */
        case 0x40: break;                                                              /* a battery's state */
        case 0x9b: body = PG("\x02\x01"); extended = true; break;
        default: return false;
        }
    } else {
        switch (protocol) {
        case 0x70: extended = false; break;
        case 0x32: case 0x33: case 0x41: break;
        case 0x9b: body = PG("\x02\x01"); break; /* the card is known */
        default: return false;
        }
    }
    gt06_add_frame(out, extended, protocol, body, frame->serial);
    return true;
}
