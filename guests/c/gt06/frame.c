#include "frame.h"

enum {
    SHORT_START = 0x78,
    LONG_START = 0x79,
    LENGTH_MIN = 5, /* protocol, serial, checksum */
};

static uint16_t u16(pg_bytes bytes, size_t at) { return (uint16_t)(bytes.ptr[at] << 8 | bytes.ptr[at + 1]); }

/* Without a table: it would be a part of every instance's memory, and the frames are short. */
static uint16_t checksum(pg_bytes bytes) {
    uint16_t sum = 0xffff;
    for (size_t at = 0; at < bytes.len; at++) {
        sum ^= bytes.ptr[at];
        for (int bit = 0; bit < 8; bit++) {
            sum = (uint16_t)(sum >> 1 ^ (sum & 1 ? 0x8408 : 0));
        }
    }
    return sum ^ 0xffff;
}

gt06_found gt06_take(pg_bytes stream, gt06_frame *frame, size_t *used) {
    *used = 0;
    if (stream.len < 2) {
        if (stream.len == 1 && stream.ptr[0] != SHORT_START && stream.ptr[0] != LONG_START) {
            *used = 1;
            return FRAME_STRAY;
        }
        return FRAME_UNFINISHED;
    }
    uint8_t start = stream.ptr[0];
    if ((start != SHORT_START && start != LONG_START) || stream.ptr[1] != start) {
        *used = 1;
        return FRAME_STRAY;
    }
    size_t length_bytes = start == SHORT_START ? 1 : 2, head = 2 + length_bytes;
    if (stream.len < head) {
        return FRAME_UNFINISHED;
    }
    size_t length = length_bytes == 1 ? stream.ptr[2] : u16(stream, 2);
    size_t whole = head + length + 2;
    if (length < LENGTH_MIN || whole > FRAME_MAX) {
        *used = 2;
        return FRAME_STRAY;
    }
    if (stream.len < whole) {
        return FRAME_UNFINISHED;
    }
    if (stream.ptr[whole - 2] != 0x0d || stream.ptr[whole - 1] != 0x0a) {
        *used = 2;
        return FRAME_STRAY;
    }
    *used = whole;
    pg_bytes summed = pg_upto(pg_from(stream, 2), length_bytes + length - 2);
    if (checksum(summed) != u16(stream, whole - 4)) {
        return FRAME_CORRUPT;
    }
    *frame = (gt06_frame){
        .extended = start == LONG_START,
        .protocol = stream.ptr[head],
        .serial = u16(stream, whole - 6),
        .body = pg_upto(pg_from(stream, head + 1), length - LENGTH_MIN),
    };
    return FRAME_WHOLE;
}

void gt06_add_frame(pg_buffer *out, bool extended, uint8_t protocol, pg_bytes body, uint16_t serial) {
    uint8_t start = extended ? LONG_START : SHORT_START;
    body = pg_upto(body, BODY_MAX);
    pg_add_byte(out, start);
    pg_add_byte(out, start);
    size_t from = out->len;
    if (extended) {
        pg_add_byte(out, 0);
    }
    pg_add_byte(out, (uint8_t)(body.len + LENGTH_MIN));
    pg_add_byte(out, protocol);
    pg_add(out, body);
    pg_add_u16(out, serial);
    pg_add_u16(out, checksum(pg_from(pg_view(out), from)));
    pg_add(out, PG("\r\n"));
}
