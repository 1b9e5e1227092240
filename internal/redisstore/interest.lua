-- Notes until when somebody wants instances of one hub, and tells who follows that
-- in the same step; or answers which ones are wanted.
--
-- KEYS[1]  a sorted set of instance ids by when their time ends, in milliseconds of
--          this server's clock. Its name is also the name of its channel, which
--          carries the ids that were not wanted before, one a line
-- ARGV[1]  milliseconds that anybody may want an instance at most
-- ARGV[2]  how many instances there may be
-- ARGV[3]  milliseconds that these are wanted
-- ARGV[4…] their ids; if there are none, the question is which ones are wanted
--
-- Answers the ids, those first that are wanted for the longest; or how many parts
-- were found that nobody here has written, and how many instances had to leave
-- before their time.

local key, longest, most, wanted = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local strange = 0
local ended = redis.pcall('ZREMRANGEBYSCORE', key, '-inf', now)
if type(ended) == 'table' then
  if not string.find(ended.err, 'WRONGTYPE', 1, true) then
    return ended
  end
  redis.call('DEL', key) -- somebody has put something else there
  strange = 1
end
-- What ends later than anything can would never leave, and push out what is wanted.
strange = strange + redis.call('ZREMRANGEBYSCORE', key, string.format('(%.0f', now + longest), '+inf')

if #ARGV == 3 then
  return redis.call('ZREVRANGEBYSCORE', key, '+inf', '-inf', 'LIMIT', 0, most)
end

-- GT is of Redis 6.2.
local ends = now + wanted
local add, fresh = {'ZADD', key}, {}
for n = 4, #ARGV do
  local score = redis.call('ZSCORE', key, ARGV[n])
  if not score then
    fresh[#fresh + 1] = ARGV[n]
  end
  if not score or tonumber(score) < ends then
    add[#add + 1] = string.format('%.0f', ends)
    add[#add + 1] = ARGV[n]
  end
end
if #add > 2 then
  redis.call(unpack(add))
end
local left = redis.call('ZREMRANGEBYRANK', key, 0, -most - 1)
if redis.call('PTTL', key) < wanted then
  redis.call('PEXPIRE', key, wanted)
end
if #fresh > 0 then
  redis.call('PUBLISH', key, table.concat(fresh, '\n'))
end
return {strange, left}
