#include "clock.h"

enum { DAY_S = 86400, EPOCH_2000_DAYS = 10957 };

static bool is_leap(int year) { return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0); }

static int days_of(int year, int month) {
    static const uint8_t days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    return days[month - 1] + (month == 2 && is_leap(year));
}

bool clock_read(const uint8_t date[6], int timezone_min, int64_t *epoch_s) {
    int year = 2000 + date[0], month = date[1], day = date[2];
    if (date[0] > 99 || month < 1 || month > 12 || day < 1 || day > days_of(year, month) || date[3] > 23 || date[4] > 59 ||
        date[5] > 59) {
        return false;
    }
    int64_t days = EPOCH_2000_DAYS + day - 1;
    for (int before = 2000; before < year; before++) {
        days += is_leap(before) ? 366 : 365;
    }
    for (int before = 1; before < month; before++) {
        days += days_of(year, before);
    }
    *epoch_s = days * DAY_S + date[3] * 3600 + date[4] * 60 + date[5] - (int64_t)timezone_min * 60;
    return true;
}

static void split(int64_t epoch_s, int *year, int *month, int *day, int *second) {
    int64_t days = epoch_s / DAY_S;
    *second = (int)(epoch_s % DAY_S);
    for (*year = 1970; *year < 9999 && days >= (is_leap(*year) ? 366 : 365); ++*year) {
        days -= is_leap(*year) ? 366 : 365;
    }
    for (*month = 1; *month < 12 && days >= days_of(*year, *month); ++*month) {
        days -= days_of(*year, *month);
    }
    *day = (int)days + 1;
}

void clock_write(int64_t epoch_s, uint8_t date[6]) {
    int year, month, day, second;
    split(epoch_s, &year, &month, &day, &second);
    const int parts[] = {year % 100, month, day, second / 3600, second / 60 % 60, second % 60};
    for (int at = 0; at < 6; at++) {
        date[at] = (uint8_t)parts[at];
    }
}

static void add_padded(pg_buffer *text, int number, char before) {
    pg_add_byte(text, (uint8_t)before);
    pg_add_byte(text, (uint8_t)('0' + number / 10 % 10));
    pg_add_byte(text, (uint8_t)('0' + number % 10));
}

void clock_add_rfc3339(pg_buffer *text, int64_t epoch_s) {
    int year, month, day, second;
    split(epoch_s, &year, &month, &day, &second);
    pg_add_number(text, year);
    add_padded(text, month, '-');
    add_padded(text, day, '-');
    add_padded(text, second / 3600, 'T');
    add_padded(text, second / 60 % 60, ':');
    add_padded(text, second % 60, ':');
    pg_add_byte(text, 'Z');
}

bool clock_read_timezone(pg_bytes text, int *minutes) {
    if (pg_equal(text, PG("Z"))) {
        *minutes = 0;
        return true;
    }
    if (text.len != 6 || (text.ptr[0] != '+' && text.ptr[0] != '-') || text.ptr[3] != ':') {
        return false;
    }
    static const uint8_t places[] = {1, 2, 4, 5};
    int digits[4];
    for (int at = 0; at < 4; at++) {
        uint8_t byte = text.ptr[places[at]];
        if (byte < '0' || byte > '9') {
            return false;
        }
        digits[at] = byte - '0';
    }
    int read = (digits[0] * 10 + digits[1]) * 60 + digits[2] * 10 + digits[3];
    if (digits[2] > 5 || read > 14 * 60) {
        return false;
    }
    *minutes = text.ptr[0] == '-' ? -read : read;
    return true;
}
