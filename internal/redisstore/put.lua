-- Writes one instance's record if nobody wrote it since it was read, and tells
-- the followers in the same step: a crash cannot come between the two.
--
-- KEYS[1]  the instance's hash: v version, s stamp, r record, i mean interval
--          between versions. Its name is also the name of the channel.
-- ARGV[1]  the stamp that was merged from, '' for none
-- ARGV[2]  the merged record
-- ARGV[3]  milliseconds to live
-- ARGV[4]  '1' when readers can see the change: it gets a version
--
-- Answers the new stamp, a number; or, when the stamp no longer stands, the
-- stored {v, s, r} to merge into.
--
-- The stamp grows with every write, the version with every visible one: it is
-- the stamp of that write. Both are microseconds of this server's clock or one
-- more than the last, so they grow even when the record was lost in between.
--
-- The interval is in microseconds, the newest counting for a quarter; it is not
-- there before the second version.

local key = KEYS[1]
local have = redis.call('HMGET', key, 's', 'v', 'i')
if (have[1] or '') ~= ARGV[1] then
  return redis.call('HMGET', key, 'v', 's', 'r')
end

-- A field that somebody wrote by hand counts for nothing unless it leaves room
-- below 2^53, where numbers stop being exact here and in JavaScript.
local function count(text)
  local n = tonumber(text or '')
  if n and n > 0 and n < 9007199254740990 then
    return math.floor(n)
  end
  return 0
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local version = count(have[2])
local stamp = math.max(now, count(have[1]) + 1, version + 1)
local text = string.format('%.0f', stamp)
if ARGV[4] == '1' then
  local interval = 0
  if version > 0 then
    local mean = count(have[3])
    interval = stamp - version
    if mean > 0 then
      interval = math.floor((3 * mean + interval) / 4)
    end
  end
  redis.call('HSET', key, 'v', text, 's', text, 'r', ARGV[2], 'i', interval)
  redis.call('PEXPIRE', key, ARGV[3])
  redis.call('PUBLISH', key, text .. '\n' .. ARGV[2])
else
  redis.call('HSET', key, 's', text, 'r', ARGV[2])
  redis.call('PEXPIRE', key, ARGV[3])
end
return stamp
