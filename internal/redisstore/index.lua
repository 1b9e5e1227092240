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
-- Answers how much was found that no such call has written.

local key = KEYS[1]
local lifetime = tonumber(ARGV[1])

-- The index outlives its newest member's record. When less than that is left, it
-- gets an eighth more, so that this need not be done for every version, and
-- drops members older than any record can be.
local function keep()
  if redis.call('PTTL', key) >= lifetime then
    return 0
  end
  redis.call('PEXPIRE', key, math.ceil(lifetime * 9 / 8))
  local time = redis.call('TIME')
  local oldest = tonumber(time[1]) * 1000000 + tonumber(time[2]) - 1000 * lifetime
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('(%.0f', oldest))
  return redis.call('ZREMRANGEBYSCORE', key, 9007199254740992, '+inf')
end

-- The short way, for what nearly every call is: all enter or go up. It does not
-- read the scores, most of whose cost is in writing them as texts. GT is of Redis
-- 6.2, but only from 7 on does a script see where it runs.
local raised = 0
if redis.REDIS_VERSION_NUM then
  local ids, count
  if #ARGV == 3 then -- without tables, as in an index that few are in
    if string.byte(ARGV[3]) ~= 45 then -- a minus
      ids, count = ARGV[2], 1
      raised = redis.pcall('ZADD', key, 'GT', 'CH', ARGV[3], ARGV[2])
    end
  else
    local add, all = {'ZADD', key, 'GT', 'CH'}, {}
    for n = 2, #ARGV, 2 do
      if string.byte(ARGV[n + 1]) == 45 then
        all = nil
        break
      end
      add[n + 3], add[n + 4], all[n / 2] = ARGV[n + 1], ARGV[n], ARGV[n]
    end
    if all then
      ids, count = table.concat(all, '\n'), #all
      raised = redis.pcall(unpack(add))
    end
  end
  if ids and raised == count then
    local strange = keep()
    redis.call('PUBLISH', key, ids)
    return strange
  end
  if type(raised) == 'table' then -- whatever is wrong shows again below
    raised = 0
  end
end

-- The long way, on from wherever the short one came to: of who has the version
-- already, it may have raised any.
local add, changed, strange = {'ZADD', key}, {}, 0
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
    elseif raised > 0 and score == version then
      changed[#changed + 1] = id
    end
  elseif score and score <= -version then
    redis.call('ZREM', key, id)
    changed[#changed + 1] = id
  end
end

if #add > 2 then
  redis.call(unpack(add))
end
if #add > 2 or raised > 0 then
  strange = strange + keep()
end
if #changed > 0 then
  redis.call('PUBLISH', key, table.concat(changed, '\n'))
end
return strange
