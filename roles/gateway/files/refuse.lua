-- SPDX-License-Identifier: Apache-2.0
-- Copyright (c) localfirst.llm_fleet contributors
-- Answers a refusal to a client that speaks HTTP/2: service refuse_<status> sends what the configuration left in txn.refusal.
--
-- `http-request return` resets an HTTP/2 stream whose request is still on its way, and many clients (curl too) then drop the
-- answer and show a protocol error instead. So the rest of the request is read here before the stream ends.

local MOST = 64 * 1024 * 1024
local PIECE = 64 * 1024

local function drain(applet)
    local left = MOST
    while left > 0 do
        local data = applet:receive(PIECE)
        if not data or #data == 0 then
            return
        end
        left = left - #data
    end
end

for _, status in ipairs({400, 401, 403, 404, 413, 429, 503}) do
    core.register_service("refuse_" .. status, "http", function(applet)
        local body = applet:get_var("txn.refusal")
        applet:set_status(status)
        applet:add_header("content-type", "application/json")
        applet:add_header("content-length", #body)
        applet:start_response()
        applet:send(body)
        drain(applet)
    end)
end
