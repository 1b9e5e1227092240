-- Counts the sockets of one holder of places, such as a caller, and says how many more a replica may open.
-- Each replica's count is a lease: who dies no longer counts when it has ended.
--
-- KEYS[1]  the holder's leases: a hash of "end count" by replica, where end is in
--          milliseconds of this server's clock
-- ARGV[1]  the replica
-- ARGV[2]  how many it has
-- ARGV[3]  how many more it wants
-- ARGV[4]  how many all replicas together may have
-- ARGV[5]  milliseconds that a lease lasts
--
-- Answers how many more it has now. What it has is never taken from it, since
-- those sockets are open.

local key, replica = KEYS[1], ARGV[1]
local have, want, most, lease = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local others = 0
local leases = redis.pcall('HGETALL', key)
if leases.err then
  if not string.find(leases.err, 'WRONGTYPE', 1, true) then
    return leases
  end
  redis.call('DEL', key) -- somebody has put something else there
  leases = {}
end
for i = 1, #leases, 2 do
  if leases[i] ~= replica then
    local ends, count = string.match(leases[i + 1], '^(%d+) (%d+)$')
    ends, count = tonumber(ends or '') or 0, tonumber(count or '') or 0
    -- One that ends later than any can is no lease, or of a clock that went back;
    -- then its replica comes again soon.
    if ends > now and ends <= now + lease and count > 0 and count < 2147483648 then
      others = others + count
    else
      redis.call('HDEL', key, leases[i])
    end
  end
end

local granted = math.max(0, math.min(want, most - others - have))
if have + granted > 0 then
  redis.call('HSET', key, replica, string.format('%.0f %.0f', now + lease, have + granted))
  redis.call('PEXPIRE', key, lease)
else
  redis.call('HDEL', key, replica)
end
return granted
