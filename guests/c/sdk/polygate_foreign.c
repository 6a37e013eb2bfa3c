#include "polygate_foreign.h"

void pg_foreign_stray(pg_foreign *foreign, pg_bytes bytes) {
    if (bytes.len == 0) {
        return;
    }
    if (foreign->since_ms == 0) {
        foreign->since_ms = pg_now_ms();
    }
    for (size_t at = 0; at < bytes.len && foreign->first_len < PG_FOREIGN_FIRST_MAX; at++) {
        foreign->first[foreign->first_len++] = bytes.ptr[at];
    }
    foreign->bytes += (uint32_t)bytes.len;
}

void pg_foreign_frame(pg_foreign *foreign) { *foreign = (pg_foreign){.framed = true}; }

bool pg_foreign_ends(pg_foreign *foreign, pg_bytes held, const char *protocol) {
    if (!foreign->framed && held.len > 0 && foreign->since_ms == 0) {
        foreign->since_ms = pg_now_ms();
    }
    size_t bytes = foreign->bytes + (foreign->framed ? 0 : held.len);
    uint64_t now_ms = foreign->since_ms == 0 ? 0 : pg_now_ms();
    bool long_since = now_ms >= foreign->since_ms + PG_FOREIGN_MS_MAX;
    if (bytes < PG_FOREIGN_BYTES_MAX && !(bytes > 0 && long_since)) {
        return false;
    }
    pg_foreign_log(foreign, held, protocol);
    return true;
}

void pg_foreign_log(const pg_foreign *foreign, pg_bytes held, const char *protocol) {
    pg_foreign shown = *foreign;
    for (size_t at = 0; at < held.len && shown.first_len < PG_FOREIGN_FIRST_MAX; at++) {
        shown.first[shown.first_len++] = held.ptr[at];
    }
    pg_bytes first = {shown.first, shown.first_len};
    const char *name = pg_foreign_name(first);
    pg_buffer line = {0};
    pg_add_number(&line, (int64_t)(foreign->bytes + held.len));
    pg_add(&line, PG(" bytes that are no frame of "));
    pg_add(&line, pg_text(protocol));
    pg_add(&line, PG(", beginning with "));
    pg_add_hex(&line, first);
    if (name != NULL) {
        pg_add(&line, PG("; they look like "));
        pg_add(&line, pg_text(name));
    }
    pg_log(PG_WARN, pg_view(&line));
    pg_free(&line);
}

static bool is_digit(pg_bytes bytes, size_t at) { return at < bytes.len && bytes.ptr[at] >= '0' && bytes.ptr[at] <= '9'; }

static bool is_upper(pg_bytes bytes, size_t at) { return at < bytes.len && bytes.ptr[at] >= 'A' && bytes.ptr[at] <= 'Z'; }

const char *pg_foreign_name(pg_bytes first) {
    static const struct {
        pg_bytes begins;
        const char *name;
    } known[] = {
        {PG("\x78\x78"), "GT06"},
        {PG("\x79\x79"), "GT06"},
        {PG("##,imei:"), "GPS103"},
        {PG("imei:"), "GPS103"},
        {PG("##"), "GB/T 32960"},
        {PG("\x7e"), "JT/T 808"},
        {PG("\x00\x0f"), "Teltonika"},
        {PG("\x00\x00\x00\x00"), "Teltonika"},
        {PG("$$"), "Meitrack"},
        {PG("!AIVD"), "AIS (NMEA 0183)"},
        {PG("LOGIN "), "NMEA 0183"},
        {PG("+RESP:"), "Queclink"},
        {PG("+BUFF:"), "Queclink"},
        {PG("+ACK:"), "Queclink"},
        {PG("\x16\x03"), "TLS"},
        {PG("GET "), "HTTP"},
        {PG("POST "), "HTTP"},
        {PG("PUT "), "HTTP"},
        {PG("HEAD "), "HTTP"},
        {PG("OPTIONS "), "HTTP"},
        {PG("CONNECT "), "HTTP"},
        {PG("PRI * HTTP/2"), "HTTP/2"},
        {PG("SSH-"), "SSH"},
        {PG("PROXY "), "a PROXY header"},
        {PG("\r\n\r\n\x00\r\nQUIT\n"), "a PROXY header"},
        {PG("\x03\x00"), "RDP"},
    };
    for (size_t at = 0; at < sizeof known / sizeof *known; at++) {
        if (pg_starts_with(first, known[at].begins)) {
            return known[at].name;
        }
    }
    if (first.len > 4 && first.ptr[0] == '*' && first.ptr[3] == ',') {
        return "H02";
    }
    if (first.len > 1 && first.ptr[0] == '$') {
        return is_upper(first, 1) ? "NMEA 0183" : is_digit((pg_bytes){first.ptr, first.len}, 1) ? NULL : "H02";
    }
    if (first.len > 1 && first.ptr[0] == '(' && is_digit(first, 1)) {
        return "TK103";
    }
    if (first.len > 1 && first.ptr[0] == '[' && is_upper(first, 2)) {
        return "Watch (3G)";
    }
    if (first.len > 8 && first.ptr[0] == 0x10 && pg_equal(pg_upto(pg_from(first, 4), 4), PG("MQTT"))) {
        return "MQTT";
    }
    return NULL;
}
