-- SPDX-License-Identifier: Apache-2.0
-- Copyright (c) localfirst.llm_fleet contributors
-- Answers a refusal: service refuse_<status> sends what the configuration left in txn.refusal, and then reads the rest of the request.
--
-- `http-request return` does not: it resets an HTTP/2 stream, and closes an HTTP/1 connection, on which the request is still
-- on its way, and many clients (curl too) then show that and not the answer.

local PIECE = 64 * 1024
-- How much is read of a request that is refused with 401, and of any other: 1 MiB for strangers, 64 MiB for clients.
local PIECES = {[401] = 16}
local MOST = 1024

local function drain(applet, pieces)
    for _ = 1, pieces do
        local data = applet:receive(PIECE)
        if not data or #data == 0 then
            return
        end
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
        drain(applet, PIECES[status] or MOST)
    end)
end
