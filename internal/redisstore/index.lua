-- Brings members of one index up to date, and tells who follows it in the same
-- step: a crash cannot come between the two.
--
-- KEYS[1]  the index: a sorted set of instance ids by version. Its name is also
--          the name of its channel, which carries the ids that changed, one a
--          line: no id contains a control character.
-- ARGV[1]  milliseconds that the longest-lived record lives
-- ARGV[2…] pairs: an id, and the version at which it belongs to the index; or
--          that version negated when it has left the index then
--
-- A score never sinks, and who has entered again after the version of its
-- leaving stays: calls may come in any order.
--
-- The index outlives its newest member's record, and drops members older than
-- any record can be. Both are seen to whenever a member is new or its score has
-- come to another eighth of that time, and the index lives that eighth longer:
-- then it need not be done for every version.
--
-- Answers how much was found that no such call has written.

local key = KEYS[1]
local lifetime = tonumber(ARGV[1])
local eighth = lifetime * 125 -- in microseconds, as versions are
local add, changed = {'ZADD', key}, {}
local strange, renew = 0, false

for n = 2, #ARGV, 2 do
  local id = ARGV[n]
  local version = tonumber(ARGV[n + 1])
  local text = redis.pcall('ZSCORE', key, id)
  if type(text) == 'table' then -- of another type; Reindex finds what it held, if it was an index
    redis.call('DEL', key)
    strange, text = strange + 1, false
  end
  local score = tonumber(text or '')
  if score and not (score > 0 and score < 9007199254740992) then
    strange, score = strange + 1, 0
  end
  if version > 0 then
    if not score or score < version then
      add[#add + 1] = ARGV[n + 1]
      add[#add + 1] = id
      changed[#changed + 1] = id
      renew = renew or not score or score < version - version % eighth
    end
  elseif score and score <= -version then
    redis.call('ZREM', key, id)
    changed[#changed + 1] = id
  end
end

if #add > 2 then
  redis.call(unpack(add))
end
if renew then
  redis.call('PEXPIRE', key, math.ceil(lifetime * 9 / 8))
  local time = redis.call('TIME')
  local oldest = tonumber(time[1]) * 1000000 + tonumber(time[2]) - 1000 * lifetime
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('(%.0f', oldest))
  strange = strange + redis.call('ZREMRANGEBYSCORE', key, 9007199254740992, '+inf')
end
if #changed > 0 then
  redis.call('PUBLISH', key, table.concat(changed, '\n'))
end
return strange
