#include "polygate_json.h"

/* ---- Writing ---- */

static void quoted(pg_buffer *json, pg_bytes text) {
    pg_add_byte(json, '"');
    while (text.len > 0) {
        size_t len = pg_character(text);
        uint8_t byte = text.ptr[0];
        if (len == 0) {
            pg_add(json, PG("\xef\xbf\xbd"));
            len = 1;
        } else if (byte == '"' || byte == '\\') {
            pg_add_byte(json, '\\');
            pg_add_byte(json, byte);
        } else if (byte < 0x20) {
            pg_add(json, PG("\\u00"));
            pg_add_hex(json, (pg_bytes){&byte, 1});
        } else {
            pg_add(json, pg_upto(text, len));
        }
        text = pg_from(text, len);
    }
    pg_add_byte(json, '"');
}

/* A comma unless this is the first, and the name. */
static void begin(pg_buffer *json, const char *name) {
    if (json->len > 0) {
        uint8_t before = json->ptr[json->len - 1];
        if (before != '{' && before != '[') {
            pg_add_byte(json, ',');
        }
    }
    if (name != NULL) {
        quoted(json, pg_text(name));
        pg_add_byte(json, ':');
    }
}

void pg_json_open(pg_buffer *json, const char *name, char bracket) {
    begin(json, name);
    pg_add_byte(json, (uint8_t)bracket);
}

void pg_json_close(pg_buffer *json, char bracket) { pg_add_byte(json, (uint8_t)bracket); }

void pg_json_text(pg_buffer *json, const char *name, pg_bytes text) {
    begin(json, name);
    quoted(json, text);
}

void pg_json_hex(pg_buffer *json, const char *name, pg_bytes bytes) {
    begin(json, name);
    pg_add_byte(json, '"');
    pg_add_hex(json, bytes);
    pg_add_byte(json, '"');
}

void pg_json_number(pg_buffer *json, const char *name, int64_t number) { pg_json_decimal(json, name, number, 0); }

void pg_json_decimal(pg_buffer *json, const char *name, int64_t number, unsigned places) {
    begin(json, name);
    pg_add_decimal(json, number, places);
}

void pg_json_flag(pg_buffer *json, const char *name, bool flag) {
    begin(json, name);
    pg_add(json, flag ? PG("true") : PG("false"));
}

/* ---- Reading ---- */

static pg_bytes trimmed(pg_bytes text) {
    while (text.len > 0 && (text.ptr[0] == ' ' || (text.ptr[0] >= '\t' && text.ptr[0] <= '\r'))) {
        text = pg_from(text, 1);
    }
    return text;
}

/* The length of the string that begins here, with both quotes; 0 when none does. */
static size_t string_len(pg_bytes text) {
    if (text.len == 0 || text.ptr[0] != '"') {
        return 0;
    }
    for (size_t at = 1; at < text.len; at++) {
        if (text.ptr[at] == '\\') {
            at++;
        } else if (text.ptr[at] == '"') {
            return at + 1;
        }
    }
    return 0;
}

/* The length of the value that begins here; 0 when none does. */
static size_t value_len(pg_bytes text) {
    size_t depth = 0;
    for (size_t at = 0; at < text.len;) {
        uint8_t byte = text.ptr[at];
        if (byte == '"') {
            size_t len = string_len(pg_from(text, at));
            if (len == 0) {
                return 0;
            }
            at += len;
            if (depth == 0) {
                return at;
            }
            continue;
        }
        if (byte == '{' || byte == '[') {
            depth++;
        } else if (byte == '}' || byte == ']' || (byte == ',' && depth == 0)) {
            if (depth == 0) {
                return at;
            }
            if (byte != ',' && --depth == 0) {
                return at + 1;
            }
        }
        at++;
    }
    return depth == 0 ? text.len : 0;
}

bool pg_json_member(pg_bytes object, const char *name, pg_bytes *value) {
    pg_buffer read = {0};
    bool found = false;
    pg_bytes rest = trimmed(object);
    if (rest.len > 0 && rest.ptr[0] == '{') {
        rest = trimmed(pg_from(rest, 1));
    } else {
        rest.len = 0;
    }
    while (!found && rest.len > 0) {
        size_t len = string_len(rest);
        if (len == 0 || !pg_json_read_text(pg_upto(rest, len), &read)) {
            break;
        }
        rest = trimmed(pg_from(rest, len));
        if (rest.len == 0 || rest.ptr[0] != ':') {
            break;
        }
        rest = trimmed(pg_from(rest, 1));
        len = value_len(rest);
        if (len == 0) {
            break;
        }
        *value = pg_upto(rest, len);
        found = pg_equal(pg_view(&read), pg_text(name));
        rest = trimmed(pg_from(rest, len));
        if (rest.len == 0 || rest.ptr[0] != ',') {
            break;
        }
        rest = trimmed(pg_from(rest, 1));
    }
    pg_free(&read);
    return found;
}

/* Four hexadecimal digits; -1 when they are none. */
static int32_t unit(pg_bytes digits) {
    int32_t number = 0;
    if (digits.len < 4) {
        return -1;
    }
    for (size_t at = 0; at < 4; at++) {
        uint8_t digit = digits.ptr[at];
        if (digit >= '0' && digit <= '9') {
            number = number * 16 + digit - '0';
        } else if ((digit | 0x20) >= 'a' && (digit | 0x20) <= 'f') {
            number = number * 16 + (digit | 0x20) - 'a' + 10;
        } else {
            return -1;
        }
    }
    return number;
}

/* Undoes the \u at the beginning; how many bytes that took, or 0. */
static size_t unescaped(pg_bytes rest, pg_buffer *text) {
    int32_t first = unit(pg_from(rest, 2));
    if (first < 0 || (first >= 0xdc00 && first < 0xe000)) {
        return 0;
    }
    if (first < 0xd800 || first >= 0xe000) {
        pg_add_character(text, (uint32_t)first);
        return 6;
    }
    int32_t second = pg_starts_with(pg_from(rest, 6), PG("\\u")) ? unit(pg_from(rest, 8)) : -1;
    if (second < 0xdc00 || second >= 0xe000) {
        return 0;
    }
    pg_add_character(text, 0x10000 + ((uint32_t)(first - 0xd800) << 10) + (uint32_t)(second - 0xdc00));
    return 12;
}

bool pg_json_read_text(pg_bytes value, pg_buffer *text) {
    pg_clear(text);
    size_t len = string_len(value);
    if (len == 0) {
        return false;
    }
    pg_bytes rest = pg_upto(pg_from(value, 1), len - 2);
    while (rest.len > 0) {
        if (rest.ptr[0] != '\\') {
            pg_add_byte(text, rest.ptr[0]);
            rest = pg_from(rest, 1);
            continue;
        }
        if (rest.len < 2) {
            return false;
        }
        size_t taken = 2;
        switch (rest.ptr[1]) {
        case '"': case '\\': case '/': pg_add_byte(text, rest.ptr[1]); break;
        case 'b': pg_add_byte(text, '\b'); break;
        case 'f': pg_add_byte(text, '\f'); break;
        case 'n': pg_add_byte(text, '\n'); break;
        case 'r': pg_add_byte(text, '\r'); break;
        case 't': pg_add_byte(text, '\t'); break;
        case 'u': taken = unescaped(rest, text); break;
        default: taken = 0;
        }
        if (taken == 0) {
            return false;
        }
        rest = pg_from(rest, taken);
    }
    return true;
}

bool pg_json_read_number(pg_bytes value, uint64_t *number) {
    uint64_t read = 0;
    size_t at = 0;
    while (at < value.len && value.ptr[at] >= '0' && value.ptr[at] <= '9') {
        unsigned digit = value.ptr[at] - '0';
        if (read > (UINT64_MAX - digit) / 10) {
            return false;
        }
        read = read * 10 + digit;
        at++;
    }
    if (at == 0 || trimmed(pg_from(value, at)).len > 0) {
        return false;
    }
    *number = read;
    return true;
}
