/* Dates of terminals: six bytes, year of this century, month, day, hour, minute, second. */
#ifndef CLOCK_H
#define CLOCK_H

#include "polygate.h"

/* Seconds since the Unix epoch; false when there is no such time. The terminal's clock is so many minutes ahead of UTC. */
bool clock_read(const uint8_t date[6], int timezone_min, int64_t *epoch_s);
void clock_write(int64_t epoch_s, uint8_t date[6]);     /* of UTC; for years of this century */
void clock_add_rfc3339(pg_buffer *text, int64_t epoch_s); /* for 1970 to 9999 */

/* Reads "+08:00", "-03:30" or "Z", at most 14 hours. */
bool clock_read_timezone(pg_bytes text, int *minutes);

#endif
