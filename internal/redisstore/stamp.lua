-- Gives positions to updates of one instance that have none.
--
-- KEYS[1]  the last that was given: "generation sequence state", where the state is e
--          when the run has ended, x when it was purged, else -
-- KEYS[2]  the instance's record
-- ARGV[1]  milliseconds to live
-- ARGV[2…] what each update says of the run: p that it is pending, r that it goes on,
--          e that it has ended, x that it was purged, - nothing
--
-- Answers a generation and a sequence for each.

local time = redis.call('TIME')
local seconds, micros = tonumber(time[1]), tonumber(time[2])
local now = seconds * 1000000 + micros
local clock = seconds * 1000 + math.floor(micros / 1000)

-- What somebody wrote by hand counts for nothing unless readers would accept it: a
-- generation at most ten minutes ahead, and room below 2^53 for a sequence.
local function generation(n)
  return type(n) == 'number' and n >= 0 and n <= clock + 600000 and math.floor(n) or nil
end

local run, last, state
local text = redis.pcall('GET', KEYS[1])
if type(text) == 'table' and not string.find(text.err, 'WRONGTYPE', 1, true) then
  return text
end
if type(text) == 'string' then
  local g, s, how = string.match(text, '^(%d+) (%d+) ([ex-])$')
  run, last, state = generation(tonumber(g or '')), tonumber(s or '') or 0, how
end
if not run then
  -- Somebody else may have declared this run, and it may have ended.
  last, state = 0, '-'
  local read, record = pcall(cjson.decode, redis.pcall('HMGET', KEYS[2], 'r')[1] or '')
  if read and type(record) == 'table' then
    run = generation(record.gen or 0)
    local life = type(record.lifecycle) == 'table' and record.lifecycle.status
    if record.purged then
      state = 'x'
    elseif life == 'Completed' or life == 'Failed' or life == 'Canceled' or life == 'Terminated' then
      state = 'e'
    end
  end
  run = run or clock
end
if last > 9007199254000000 then
  last = 0
end

local given = {}
for n = 2, #ARGV do
  local says = ARGV[n]
  if says == 'p' and state ~= '-' or says == 'r' and state == 'x' then
    run, state = math.max(clock, run + 1), '-'
  end
  if says == 'x' or says == 'e' and state ~= 'x' then
    state = says
  end
  last = math.max(now, last + 1)
  given[#given + 1] = run
  given[#given + 1] = last
end
redis.call('SET', KEYS[1], string.format('%.0f %.0f %s', run, last, state), 'PX', ARGV[1])
return given
