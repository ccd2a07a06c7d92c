%% The same things as benchmarks/actors.py does, by gen_servers under an OTP supervisor.
-module(actors).
-behaviour(gen_server).
-behaviour(supervisor).
-export([main/0, start_link/1, init/1, handle_call/3, handle_cast/2]).

main() ->
    ok = logger:set_primary_config(level, none),
    process_flag(trap_exit, true),
    [Tells, Asks, Spawns, Restarts] =
        [list_to_integer(Count) || Count <- init:get_plain_arguments()],
    Sup = many(),
    {ok, One} = supervisor:start_child(Sup, []),
    up(1),
    tells(One, Tells),
    asks(One, Asks),
    stop(Sup),
    Before = erlang:memory(processes),
    Fresh = many(),
    {Took, Children} = timer:tc(fun() -> start(Fresh, Spawns) end),
    up(Spawns),
    tell("spawn/s", Spawns * 1.0e6 / Took),
    [erlang:garbage_collect(Child) || Child <- Children],
    tell("bytes per idle actor", (erlang:memory(processes) - Before) / Spawns),
    restarts(lists:sublist(Children, Restarts)),
    storm([Pid || {_, Pid, _, _} <- supervisor:which_children(Fresh)]),
    {Stopped, _} = timer:tc(fun() -> stop(Fresh) end),
    tell("stop/s", Spawns * 1.0e6 / Stopped),
    halt().

many() ->
    {ok, Sup} = supervisor:start_link(?MODULE, {supervisor, self()}),
    Sup.

stop(Sup) ->
    exit(Sup, shutdown),
    receive {'EXIT', Sup, _} -> ok end.

start(Sup, Count) ->
    [begin {ok, Pid} = supervisor:start_child(Sup, []), Pid end
     || _ <- lists:seq(1, Count)].

up(0) -> ok;
up(Count) -> receive up -> up(Count - 1) end.

tells(Pid, Count) ->
    Flood = fun() ->
        [gen_server:cast(Pid, tick) || _ <- lists:seq(1, Count)],
        gen_server:call(Pid, get, infinity)
    end,
    {Took, _} = timer:tc(Flood),
    tell("tell/s", Count * 1.0e6 / Took).

asks(Pid, Count) ->
    Sample = [nanos(fun() -> gen_server:call(Pid, get) end) || _ <- lists:seq(1, Count)],
    quantiles("ask", Sample).

restarts(Children) ->
    Kill = fun(Pid) -> nanos(fun() -> exit(Pid, kill), up(1) end) end,
    quantiles("kill to answer", [Kill(Pid) || Pid <- Children]).

storm(Children) ->
    Kill = fun() ->
        [exit(Pid, kill) || Pid <- Children],
        up(length(Children))
    end,
    {Took, _} = timer:tc(Kill),
    tell("10k killed, all back ms", Took / 1000).

nanos(Fun) ->
    Begun = erlang:monotonic_time(nanosecond),
    Fun(),
    erlang:monotonic_time(nanosecond) - Begun.

quantiles(Name, Sample) ->
    Sorted = lists:sort(Sample),
    At = fun(Share) -> lists:nth(1 + trunc((length(Sorted) - 1) * Share), Sorted) / 1000 end,
    tell(Name ++ " p50 us", At(0.5)),
    tell(Name ++ " p99 us", At(0.99)).

tell(Name, Value) ->
    io:format("~s ~.3f~n", [Name, Value * 1.0]).

start_link(Owner) ->
    gen_server:start_link(?MODULE, {worker, Owner}, []).

init({supervisor, Owner}) ->
    Child = #{id => worker, start => {?MODULE, start_link, [Owner]}},
    {ok, {#{strategy => simple_one_for_one, intensity => 1000000, period => 1}, [Child]}};
init({worker, Owner}) ->
    Owner ! up,
    {ok, 0}.

handle_call(get, _From, Count) -> {reply, Count + 1, Count + 1}.

handle_cast(tick, Count) -> {noreply, Count + 1}.
